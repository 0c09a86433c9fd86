"""Several judges as one, with their disagreement as its uncertainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config
from pipeline.judges.base import (
    ON_CPU,
    JudgeConfig,
    JudgeItem,
    Judgment,
    Resources,
    Verdict,
    judge_version,
    judgment_of,
    seen_by,
)
from pipeline.judges.registry import MemberJudge, judge, make
from pipeline.judges.support.stated import SPREAD, order_probability, pair_components
from pipeline.usage import total

Scaled = tuple[float, float]
"""A score on the ensemble's scale, and its standard deviation."""
STATEMENTS = 2
"""Counts what it states of how sure it is: earlier, standard deviations alone."""


class Member(Config):
    """A judge in an ensemble. Its scores are brought to the others' scale: ``(score - offset) / scale``."""

    judge: MemberJudge = Field(description="the judge")
    weight: float = Field(1.0, gt=0, le=1000, description="weight in the mean; weights need not sum to 1")
    offset: float = Field(0.0, description="the score that counts as 0")
    scale: float = Field(1.0, gt=0, description="the difference in score that counts as 1")


class EnsembleConfig(JudgeConfig):
    """Several judges as one score, with their disagreement as its standard deviation.

    Scales are given, not estimated: what is estimated from a shard would give one completion different scores in
    different shards. ``ranks`` needs no scales: a member counts by its order of a prompt's completions, from 0 to 1.
    """

    MEMBER = False

    kind: Literal["ensemble"]
    members: tuple[Member, ...] = Field(description="the judges")
    normalise: Literal["scales", "ranks"] = Field(
        "scales", description="by each member's offset and scale, or by rank among the prompt's completions"
    )
    combine: Literal["mean", "minimum", "lower_bound"] = Field(
        "mean", description="weighted mean, worst member, or mean less confidence times the standard deviation"
    )
    confidence: float = Field(1.0, gt=0, le=100, description="of lower_bound, in standard deviations")

    @model_validator(mode="after")
    def _members_fit(self) -> "EnsembleConfig":
        if len(self.members) < 2:
            raise ValueError(f"the ensemble has {len(self.members)} members: give two or more")
        names = [member.judge.label for member in self.members]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two members of the ensemble are named '{twice}': give one of them another name")
        if self.normalise == "ranks" and any((member.offset, member.scale) != (0.0, 1.0) for member in self.members):
            raise ValueError("normalise 'ranks' uses no offset and no scale: leave them out, or set it to scales")
        return self

    @property
    def states_uncertainty(self) -> bool:
        return True

    @property
    def compares(self) -> bool:
        return self.normalise == "ranks" or any(member.judge.compares for member in self.members)

    def parts(self) -> tuple[JudgeConfig, ...]:
        return (self, *(member.judge for member in self.members))

    def scoring(self) -> dict[str, Any]:
        members = [{**member.hashed(), "judge": member.judge.scoring()} for member in self.members]
        return {**super().scoring(), "members": members}


@judge(EnsembleConfig)
class EnsembleJudge:
    """A weighted mean, a minimum, or a lower bound of its members' scores on one scale.

    With normalised scores ``x_m``, their standard deviations ``s_m`` (0 if a member states none) and weights
    ``w_m`` that sum to 1, the mean is ``mu = sum w_m x_m``. The variance is that of the mixture of the members,
    ``sum w_m (s_m**2 + (x_m - mu)**2)``: their disagreement, and what each of them does not know. The score is ``mu``,
    ``min x_m`` or ``mu - confidence * std``; ``score_std`` is the same for all three.

    How probable an order is, follows from the members' differences: with ``d_m = x_m,a - x_m,b``, its mean ``d`` and
    its variance ``sum w_m (s_m,ab**2 + (d_m - d)**2)`` it is ``Phi(d / sqrt(variance))``. So members that agree in
    every difference are sure, whatever their levels are, and a score that is a bound of something is no mean of it.

    If a member gives a candidate no score, it has none here, and that member's status.
    """

    name = "ensemble"

    def __init__(self, config: EnsembleConfig, resources: Resources = ON_CPU) -> None:
        self._config = config
        self._members = [make(member.judge, resources) for member in config.members]
        total = math.fsum(member.weight for member in config.members)
        self._weights = [member.weight / total for member in config.members]
        self._names = [member.judge.label for member in config.members]
        self.version = judge_version(config, STATEMENTS, [member.version for member in self._members])

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Judges with each member; components: its raw score under its name, its deviation and components below that.

        Raises:
            JudgeError: a member failed as a whole.
        """
        configs = [member.judge for member in self._config.members]
        by_member = [
            member.judge(seen_by(config, items)) for config, member in zip(configs, self._members, strict=True)
        ]
        judgments: list[Judgment] = []
        for item in items:
            start = len(judgments)
            here = [found[start : start + len(item.candidates)] for found in by_member]
            scaled = [self._scaled(number, found) for number, found in enumerate(here)]
            verdicts = [
                self._verdict([found[k] for found in here], [found[k] for found in scaled])
                for k in range(len(item.candidates))
            ]
            beats, spread = self._orders(item, here, scaled, [verdict.status == "ok" for verdict in verdicts])
            for k, candidate in enumerate(item.candidates):
                components = {**verdicts[k].components, **pair_components(candidate.index, beats, spread)}
                verdict, latency = replace(verdicts[k], components=components), sum(found[k].latency for found in here)
                usages = [found[k].usage for found in here]
                usage = total(known) if (known := [usage for usage in usages if usage is not None]) else None
                judgments.append(judgment_of(self, item, candidate, verdict, latency, usage))
        return judgments

    def _orders(
        self,
        item: JudgeItem,
        said: Sequence[Sequence[Judgment]],
        scaled: Sequence[Sequence[Scaled | None]],
        scored: Sequence[bool],
    ) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
        """Computes for each two scored candidates the probability that one beats the other, and their spread."""
        beats, spread = {}, {}
        places = [k for k, has_score in enumerate(scored) if has_score]
        for a, b in permutations(places, 2):
            first, second = item.candidates[a].index, item.candidates[b].index
            mean, std = self._difference(said, scaled, a, b, f"{SPREAD}{second}")
            beats[first, second], spread[first, second] = order_probability(mean, std), std
        return beats, spread

    def _difference(
        self, said: Sequence[Sequence[Judgment]], scaled: Sequence[Sequence[Scaled | None]], a: int, b: int, name: str
    ) -> tuple[float, float]:
        """Computes the mean of the members' differences of two candidates, by their places, and its standard deviation.

        Args:
            name: the component by which a member states the standard deviation of its own difference.
        """
        differences, variances = [], []
        for number, found in enumerate(scaled):
            first, second = found[a], found[b]
            assert first is not None
            assert second is not None
            own = None if self._config.normalise == "ranks" else said[number][a].components.get(name)
            std = math.hypot(first[1], second[1]) if own is None else own / self._config.members[number].scale
            differences.append(first[0] - second[0])
            variances.append(std**2)
        mean = math.fsum(weight * d for weight, d in zip(self._weights, differences, strict=True))
        variance = math.fsum(
            weight * (own + (d - mean) ** 2)
            for weight, own, d in zip(self._weights, variances, differences, strict=True)
        )
        return mean, math.sqrt(variance)

    def _scaled(self, number: int, found: Sequence[Judgment]) -> list[Scaled | None]:
        """Returns a member's scores of a prompt's candidates, with standard deviations, on the ensemble's scale."""
        if self._config.normalise == "ranks":
            ranks = relative_ranks([judgment.score for judgment in found])
            return [None if rank is None else (rank, 0.0) for rank in ranks]
        member = self._config.members[number]
        return [
            None
            if judgment.score is None
            else ((judgment.score - member.offset) / member.scale, (judgment.score_std or 0.0) / member.scale)
            for judgment in found
        ]

    def _verdict(self, said: Sequence[Judgment], scaled: Sequence[Scaled | None]) -> Verdict:
        components = self._components(said)
        for name, judgment, value in zip(self._names, said, scaled, strict=True):
            if judgment.status != "ok" or value is None:
                status = judgment.status if judgment.status != "ok" else "alone"
                reason = f"no score by {name}: {judgment.rationale or status}"
                return Verdict(score=None, status=status, components=components, rationale=reason)
        values = [value for value in scaled if value is not None]
        mean = math.fsum(weight * x for weight, (x, _) in zip(self._weights, values, strict=True))
        variance = math.fsum(
            weight * (std**2 + (x - mean) ** 2) for weight, (x, std) in zip(self._weights, values, strict=True)
        )
        std = math.sqrt(variance)
        scores: Mapping[str, float] = {
            "mean": mean,
            "minimum": min(x for x, _ in values),
            "lower_bound": mean - self._config.confidence * std,
        }
        return Verdict(score=scores[self._config.combine], score_std=std, components=components)

    def _components(self, said: Sequence[Judgment]) -> dict[str, float]:
        components: dict[str, float] = {}
        for name, judgment in zip(self._names, said, strict=True):
            parts = {"": judgment.score, ".std": judgment.score_std}
            components |= {f"{name}{part}": value for part, value in parts.items() if value is not None}
            components |= {f"{name}.{part}": value for part, value in judgment.components.items()}
        return components


def relative_ranks(scores: Sequence[float | None]) -> list[float | None]:
    """Computes the share of the other scores that each is above, ties half; None for one that is missing or alone."""
    known = [score for score in scores if score is not None]
    if len(known) < 2:
        return [None] * len(scores)
    return [
        None
        if score is None
        else (sum(score > other for other in known) + 0.5 * (known.count(score) - 1)) / (len(known) - 1)
        for score in scores
    ]
