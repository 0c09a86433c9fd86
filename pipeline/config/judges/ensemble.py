"""Several judges as one."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config
from pipeline.config.judges.base import JudgeConfig
from pipeline.config.judges.llm import LlmJudge
from pipeline.config.judges.reward_model import RewardModelJudge
from pipeline.config.judges.rules import (
    CharactersJudge,
    CodeJudge,
    ExactAnswerJudge,
    GrammarJudge,
    JsonSchemaJudge,
    LengthJudge,
    MathJudge,
    PythonJudge,
    RegexJudge,
    VaderJudge,
)

SingleJudge = Annotated[
    VaderJudge
    | ExactAnswerJudge
    | GrammarJudge
    | RegexJudge
    | JsonSchemaJudge
    | LengthJudge
    | CharactersJudge
    | MathJudge
    | CodeJudge
    | PythonJudge
    | RewardModelJudge
    | LlmJudge,
    Field(discriminator="kind"),
]


class Member(Config):
    """A judge in an ensemble. Its scores are brought to the others' scale: ``(score - offset) / scale``."""

    judge: SingleJudge = Field(description="the judge")
    weight: float = Field(1.0, gt=0, le=1000, description="weight in the mean; weights need not sum to 1")
    offset: float = Field(0.0, description="the score that counts as 0")
    scale: float = Field(1.0, gt=0, description="the difference in score that counts as 1")


class EnsembleJudge(JudgeConfig):
    """Several judges as one score, with their disagreement as its standard deviation.

    Scales are given, not estimated: what is estimated from a shard would give one answer different scores in
    different shards. ``ranks`` needs no scales: a member counts by its order of a prompt's candidates, from 0 to 1.
    """

    kind: Literal["ensemble"]
    members: tuple[Member, ...] = Field(description="the judges")
    normalise: Literal["scales", "ranks"] = Field(
        "scales", description="by each member's offset and scale, or by rank among the prompt's candidates"
    )
    combine: Literal["mean", "minimum", "lower_bound"] = Field(
        "mean", description="weighted mean, worst member, or mean less confidence times the standard deviation"
    )
    confidence: float = Field(1.0, gt=0, le=100, description="of lower_bound, in standard deviations")

    @model_validator(mode="after")
    def _members_fit(self) -> "EnsembleJudge":
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
        members = [{**member.model_dump(mode="json"), "judge": member.judge.scoring()} for member in self.members]
        return {**super().scoring(), "members": members}
