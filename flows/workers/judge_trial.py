"""A judge tried on two answers before a run begins: what it is given, and what its verdicts tell."""

from collections.abc import Sequence

from flows.workers.references import TrialPrompt
from pipeline.errors import JudgeError
from pipeline.judges import JudgedCandidate, JudgeItem, Judgment

_ANSWERS = ("This is the first of two answers.", "Here is another one, of some more words than that.")
_BROKEN = ("failed", "unparsable", "non_finite")
"""Statuses that are the judge's fault, if it has them for whatever it is given."""


def trial_item(prompt: TrialPrompt) -> JudgeItem:
    """Returns the prompt with two answers, the first of them the right one if it is known."""
    texts = (prompt.reference_answer or _ANSWERS[0], _ANSWERS[1])
    return JudgeItem(
        prompt_id=prompt.prompt_id,
        prompt_text=prompt.text,
        messages=prompt.messages,
        reference_answer=prompt.reference_answer,
        candidates=[
            JudgedCandidate(index=index, text=text, finish_reason="stop", tokens=len(text.split()) + 1)
            for index, text in enumerate(texts)
        ],
    )


def trial_notice(judge: str, item: JudgeItem, judgments: Sequence[Judgment]) -> str | None:
    """Returns a sentence if neither answer has a score, but others may; None if one has.

    Raises:
        JudgeError: neither has, and that is the judge's fault.
    """
    if any(judgment.status == "ok" for judgment in judgments):
        return None
    first = judgments[0]
    what = (
        f"the judge {judge} gave neither of two trial answers to prompt {item.prompt_id} a score "
        f"({first.status}: {first.rationale or 'it says no reason'})"
    )
    if all(judgment.status in _BROKEN for judgment in judgments):
        raise JudgeError(
            f"{what}: mend it before the run begins; if an answer is at fault, it should get a low score and no error"
        )
    return f"{what}; the run goes on, as others may get one"
