"""A judge that is wrong on purpose, and knows how often."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from pipeline.judges.base import ON_CPU, JudgeConfig, JudgeItem, Judgment, Resources, judge_version, seen_by
from pipeline.judges.ensemble import EnsembleConfig
from pipeline.judges.registry import OneOf, judge, make
from pipeline.judges.support.stated import TURNED, pair_components, without_stated


class NoisyConfig(JudgeConfig):
    """Another judge, whose scores of a prompt's completions are turned round with a stated probability.

    Turned round is mirrored at ``centre``, so that every order is reversed. How often that happens differs from prompt
    to prompt: each has one of ``error_rates``, all of them equally often. For experiments on labels that are wrong.
    """

    MEMBER = False

    kind: Literal["noisy"]
    judge: Annotated[JudgeConfig, OneOf(lambda config: config.MEMBER or config is EnsembleConfig)] = Field(
        description="the other judge"
    )
    error_rates: tuple[Annotated[float, Field(ge=0, le=0.5)], ...] = Field(
        (0.2,), min_length=1, max_length=100, description="probabilities of being turned round; their mean is the error"
    )
    centre: float = Field(0.0, description="the score at which scores are mirrored")
    seed: int = Field(0, ge=0, lt=2**31, description="of the errors")

    @property
    def states_uncertainty(self) -> bool:
        return True

    @property
    def compares(self) -> bool:
        return self.judge.compares

    def parts(self) -> tuple[JudgeConfig, ...]:
        return (self, *self.judge.parts())


@judge(NoisyConfig)
class NoisyJudge:
    """Turns the scores of a prompt's candidates round with a probability that it states.

    Each prompt has one of the error rates, by its id and the seed alone. Whether its candidates' scores are mirrored at
    the centre depends on their texts too: new answers draw anew, and the same ones have the same draw. The probability
    that any order of two candidates is right is then 1 less the prompt's error rate, whichever two a rule picks: it is
    stated for each pair, and 1/2 for equal scores. There is no standard deviation, as the errors are not normal.
    """

    name = "noisy"

    def __init__(self, config: NoisyConfig, resources: Resources = ON_CPU) -> None:
        self._config = config
        self._judge = make(config.judge, resources)
        self.version = judge_version(config, self._judge.version)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Judges; components: the other judge's, its score (``true_score``), the error rate, and who beats whom.

        Raises:
            JudgeError: the other judge failed as a whole.
        """
        found = iter(self._judge.judge(seen_by(self._config.judge, items)))
        return [
            judgment
            for item in items
            for judgment in self._turned(item, [next(found) for _ in item.candidates])
        ]  # fmt: skip

    def _turned(self, item: JudgeItem, said: Sequence[Judgment]) -> list[Judgment]:
        rate, wrong = self._draw(item)
        scores = {
            judgment.candidate: 2 * self._config.centre - judgment.score if wrong else judgment.score
            for judgment in said
            if judgment.score is not None
        }
        beats = {
            (a, b): 0.5 if scores[a] == scores[b] else 1 - rate if scores[a] > scores[b] else rate
            for a in scores for b in scores if a != b
        }  # fmt: skip
        return [
            replace(
                judgment,
                judge=self.name,
                judge_version=self.version,
                score=scores.get(judgment.candidate),
                score_std=None,
                components={
                    **without_stated(judgment.components),
                    TURNED: rate,
                    **({} if judgment.score is None else {"true_score": judgment.score}),
                    **pair_components(judgment.candidate, beats),
                },
            )
            for judgment in said
        ]

    def _draw(self, item: JudgeItem) -> tuple[float, bool]:
        """Draws the prompt's error rate, and whether this time the judge is wrong."""
        config = self._config
        rate = random.Random(f"{config.seed}/{item.prompt_id}").choice(config.error_rates)  # noqa: S311
        texts = [candidate.text for candidate in item.candidates]
        draw = random.Random(f"{config.seed}/{item.prompt_id}/{texts!r}").random()  # noqa: S311
        return rate, draw < rate
