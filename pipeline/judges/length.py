"""How long an answer is."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.errors import JudgeError
from pipeline.judges.base import JudgeConfig, JudgedCandidate, JudgeItem, RuleJudge, Verdict
from pipeline.judges.registry import judge


class LengthConfig(JudgeConfig):
    """0 up to the limit, or at the target; what is beyond costs its share: twice the limit scores -1."""

    kind: Literal["length"]
    limit: int | None = Field(None, ge=1, le=10_000_000, description="lengths up to this one cost nothing")
    target: int | None = Field(None, ge=1, le=10_000_000, description="lengths on either side of this one cost")
    unit: Literal["tokens", "characters"] = Field(
        "tokens", description="of the length; tokens are the policy's, the end of sequence included"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "LengthConfig":
        if (self.limit is None) == (self.target is None):
            raise ValueError("a judge of length takes either limit or target: give one of them")
        return self


@judge(LengthConfig)
class LengthJudge(RuleJudge[LengthConfig]):
    """``-max(0, n - limit) / limit``, or ``-|n - target| / target``, for an answer of length n: 0 is best."""

    def verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Scores an answer. Component: ``length``, in the unit of the recipe.

        Raises:
            JudgeError: the unit is tokens, and an answer was given without its number of tokens.
        """
        length = candidate.tokens if self.config.unit == "tokens" else len(candidate.text)
        if length is None:
            raise JudgeError(
                f"candidate {candidate.index} of prompt {item.prompt_id} was given without its number of tokens: "
                "give it, or set the judge's unit to characters"
            )
        limit, target = self.config.limit, self.config.target
        if target is not None:
            score = -abs(length - target) / target
        else:
            assert limit is not None
            score = -max(0, length - limit) / limit
        return Verdict(score=score, components={"length": float(length)})
