"""A policy as its own reward model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.judges.base import JudgeConfig

PolicyName = Literal["latest", "initial"] | Annotated[int, Field(ge=0, le=999_999)]
"""A policy of the run: that which a round begins with, that of round 0, or that of a round by its number."""


class ImplicitJudge(JudgeConfig):
    """The implicit reward of a policy that preferences have trained: ``beta * log(policy / reference)``.

    Both are policies of the run. Of a run that begins they are one, and every reward is 0: fork from a round that
    another judge has trained.
    """

    kind: Literal["implicit"]
    policy: PolicyName = Field("latest", description="whose reward it is: latest, initial, or the number of a round")
    reference: PolicyName = Field("initial", description="what it is held against: latest, initial, or a round")
    beta: float = Field(0.1, gt=0, le=1000, description="factor of the log-ratio, as in the update")
    length_penalty: float = Field(
        0.0, ge=0, le=1000, description="taken off for each token, in units of the reward, against longer answers"
    )

    @model_validator(mode="after")
    def _two_policies(self) -> "ImplicitJudge":
        if self.policy == self.reference or {self.policy, self.reference} == {"initial", 0}:
            raise ValueError(
                f"policy {self.policy} and reference {self.reference} are one, and every reward would be 0: name two"
            )
        return self

    def rounds(self, number: int) -> tuple[int, int]:
        """The rounds that policy and reference come from, where the answers of a round are judged.

        ``latest`` is the policy that the round begins with; of round 0, its own.
        """
        return _round(self.policy, number), _round(self.reference, number)


def _round(name: PolicyName, number: int) -> int:
    if name == "latest":
        return max(number - 1, 0)
    return 0 if name == "initial" else name
