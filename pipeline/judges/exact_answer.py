"""The verifier of a task with one right answer."""

from collections.abc import Sequence

from pipeline.config import ExactAnswerJudge
from pipeline.judges.base import (
    JudgedCandidate,
    JudgeItem,
    Judgment,
    Verdict,
    judge_each,
    judge_version,
    require_references,
)


class ExactAnswer:
    """1 where the answer is the prompt's reference answer, else 0; white space around either is ignored."""

    name = "exact_answer"

    def __init__(self, config: ExactAnswerJudge) -> None:
        self._after = config.after
        self.version = judge_version(config)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Judges by comparison of texts.

        Raises:
            JudgeError: a prompt has no reference answer.
        """
        require_references(self, items)
        return judge_each(self, items, self._verdict)

    def _verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        text = candidate.text if self._after is None else candidate.text.rpartition(self._after)[2]
        return Verdict(score=float(text.strip() == (item.reference_answer or "").strip()))
