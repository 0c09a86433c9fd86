"""A judge that is wrong on purpose, and knows how often."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.judges.base import JudgeConfig
from pipeline.config.judges.ensemble import EnsembleJudge, SingleJudge


class NoisyJudge(JudgeConfig):
    """Another judge, whose scores of a prompt's candidates are turned round with a stated probability.

    Turned round is mirrored at ``centre``, so that every order is reversed. How often that happens differs from prompt
    to prompt: each has one of ``error_rates``, all of them equally often. For experiments on labels that are wrong.
    """

    kind: Literal["noisy"]
    judge: Annotated[SingleJudge | EnsembleJudge, Field(discriminator="kind")] = Field(description="the other judge")
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
