"""How long an answer is."""

from collections.abc import Sequence

from pipeline.config import LengthJudge
from pipeline.errors import JudgeError
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each, judge_version


class Length:
    """``-max(0, n - limit) / limit``, or ``-|n - target| / target``, for an answer of length n: 0 is best."""

    name = "length"

    def __init__(self, config: LengthJudge) -> None:
        self._config = config
        self.version = judge_version(config)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Component ``length``, in the unit of the recipe.

        Raises:
            JudgeError: the unit is tokens, and an answer was given without its number of tokens.
        """
        return judge_each(self, items, self._verdict)

    def _verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        length = candidate.tokens if self._config.unit == "tokens" else len(candidate.text)
        if length is None:
            raise JudgeError(
                f"candidate {candidate.index} of prompt {item.prompt_id} was given without its number of tokens: "
                "give it, or set the judge's unit to characters"
            )
        limit, target = self._config.limit, self._config.target
        if target is not None:
            score = -abs(length - target) / target
        else:
            assert limit is not None
            score = -max(0, length - limit) / limit
        return Verdict(score=score, components={"length": float(length)})
