"""Questions of a round, and what people have said of them, without a store."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.analysis.label_queues import RoundQuestions
from pipeline.judges.base import JudgedCandidate, JudgeItem
from pipeline.judges.support.human_labels import Question, digest
from support.finished_run import small_recipe


def asked_about(count: int, differences: Mapping[str, Sequence[float | None]] | None = None) -> RoundQuestions:
    """Questions 0 to `count` - 1, each with two answers.

    Args:
        differences: by judge, the first answer's score less the second's, question by question; None is no score.
    """
    questions = []
    for number in range(count):
        pair = [
            JudgedCandidate(index=index, text=f"answer {index} of {number}", finish_reason="stop") for index in (0, 1)
        ]
        item = JudgeItem(prompt_id=f"p{number}", prompt_text=f"prompt {number}", candidates=pair)
        questions.append(Question(item, (pair[0], pair[1])))
    found = {
        judge: {q.key: value for q, value in zip(questions, values, strict=True) if value is not None}
        for judge, values in (differences or {}).items()
    }
    return RoundQuestions("small", 2, small_recipe(), questions, found)


def said(question: Question, labeller: str, choice: str, second: int = 0) -> dict[str, Any]:
    """A choice as the store keeps it.

    Args:
        choice: first or second (the question's answer that is better), tie, skip or withdrawn.
        second: when, in seconds after noon.
    """
    better = {"first": 0, "second": 1}.get(choice)
    return {
        "question": question.key, "labeller": labeller, "choice": choice if better is None else "better",
        "better": None if better is None else digest(question.answers[better].text),
        "time": f"2026-01-01T12:{second // 60:02d}:{second % 60:02d}.000Z",
    }  # fmt: skip
