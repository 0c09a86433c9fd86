"""The verifier of a task with one right answer."""

from collections.abc import Sequence

from pipeline.errors import JudgeError
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each


class ExactAnswer:
    """1 where the answer is the prompt's reference answer, else 0; white space around either is ignored."""

    name = "exact_answer"
    version = "1"

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
        return judge_each(self, items, _score)


def _score(item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
    return Verdict(score=float(candidate.text.strip() == (item.reference_answer or "").strip()))
