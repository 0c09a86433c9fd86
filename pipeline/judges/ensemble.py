"""Several judges as one, with their disagreement as its uncertainty."""

import math
from collections.abc import Mapping, Sequence

from pipeline.config import EnsembleJudge
from pipeline.judges.base import Judge, JudgeItem, Judgment, Verdict, judge_version, judgment_of


class Ensemble:
    """A weighted mean, a minimum, or a lower bound of its members' scores on one scale.

    With normalised scores ``x_m``, their standard deviations ``s_m`` (0 where a member states none) and weights
    ``w_m`` that sum to 1, the mean is ``mu = sum w_m x_m`` and the variance that of the mixture of the members,
    ``sum w_m (s_m**2 + (x_m - mu)**2)``: their disagreement, and what each of them does not know. The score is ``mu``,
    ``min x_m`` or ``mu - confidence * std``; ``score_std`` is the same for all three.

    A candidate that one member gives no score has none here: its status is that member's.
    """

    name = "ensemble"

    def __init__(self, config: EnsembleJudge, members: Sequence[Judge]) -> None:
        self._config = config
        self._members = members
        total = math.fsum(member.weight for member in config.members)
        self._weights = [member.weight / total for member in config.members]
        self._names = [member.judge.label for member in config.members]
        self.version = judge_version(config, [member.version for member in members])

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Components: each member's raw score under its name, its standard deviation and components below that.

        Raises:
            JudgeError: a member failed as a whole.
        """
        by_member = [member.judge(items) for member in self._members]
        judgments: list[Judgment] = []
        for item in items:
            start = len(judgments)
            here = [found[start : start + len(item.candidates)] for found in by_member]
            scaled = [self._scaled(number, found) for number, found in enumerate(here)]
            for k, candidate in enumerate(item.candidates):
                said = [found[k] for found in here]
                verdict = self._verdict(said, [found[k] for found in scaled])
                judgments.append(judgment_of(self, item, candidate, verdict, sum(one.latency for one in said)))
        return judgments

    def _scaled(self, number: int, found: Sequence[Judgment]) -> list[tuple[float, float] | None]:
        """A member's scores of one prompt's candidates, with standard deviations, on the ensemble's scale."""
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

    def _verdict(self, said: Sequence[Judgment], scaled: Sequence[tuple[float, float] | None]) -> Verdict:
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
    """Of each score the share of the others that it is above, ties half; None for a score that is alone, or none."""
    known = [score for score in scores if score is not None]
    if len(known) < 2:
        return [None] * len(scores)
    return [
        None
        if score is None
        else (sum(score > other for other in known) + 0.5 * (known.count(score) - 1)) / (len(known) - 1)
        for score in scores
    ]
