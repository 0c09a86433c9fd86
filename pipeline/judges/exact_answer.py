"""The verifier of a task with one right answer."""

from collections.abc import Sequence

from pipeline.errors import JudgeError
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each


class ExactAnswer:
    """1 where the answer is the prompt's reference answer, else 0; white space around either is ignored.

    Args:
        after: where given, the answer is what follows the last of these marks, and its working is not judged.
    """

    name = "exact_answer"
    version = "2"

    def __init__(self, after: str | None = None) -> None:
        self._after = after

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Judges by comparison of texts.

        Raises:
            JudgeError: a prompt has no reference answer.
        """
        for item in items:
            if item.reference_answer is None:
                raise JudgeError(
                    f"prompt {item.prompt_id} has no reference answer to compare with: name the prompts' "
                    "reference_column, or choose a judge that needs none"
                )
        return judge_each(self, items, self._verdict)

    def _verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        text = candidate.text if self._after is None else candidate.text.rpartition(self._after)[2]
        return Verdict(score=float(text.strip() == (item.reference_answer or "").strip()))
