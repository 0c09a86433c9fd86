"""What people say of pairs of answers: which pairs they are asked, and what their choices come to.

A question is a prompt and two different texts, in no order; a choice is a mapping with ``question``, ``labeller`` and
``choice`` (better, tie, skip or withdrawn), and for ``better`` the digest of the better text. Only the newest choice of
a labeller to a question is given here.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import pyarrow as pa

from pipeline.judges.base import JudgedCandidate, JudgeItem
from pipeline.records import PREFERENCES, content_id, to_table

DECIDED = ("better", "tie")
ANSWERED = (*DECIDED, "skip")
Choice = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """Two answers to a prompt, by their indices among its candidates; ``key`` is the same in every run."""

    prompt: JudgeItem
    answers: tuple[JudgedCandidate, JudgedCandidate]

    @cached_property
    def key(self) -> str:
        return content_id([self.prompt.prompt_id, sorted(digest(answer.text) for answer in self.answers)])


def digest(text: str) -> str:
    """Gives a text a short name, from its hash."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def questions_of_candidates(items: Sequence[JudgeItem], pairs: int, seed: int) -> list[Question]:
    """Draws pairs of each prompt's answers by the seed and the prompt: no empty text, and no text twice."""
    found = []
    for item in items:
        texts: dict[str, JudgedCandidate] = {}
        for answer in sorted(item.candidates, key=lambda answer: answer.index):
            if answer.text.strip():
                texts.setdefault(answer.text, answer)
        possible = list(combinations(texts.values(), 2))
        rng = random.Random(f"{seed}/{item.prompt_id}")  # noqa: S311  nothing here is secret
        found += [Question(item, pair) for pair in rng.sample(possible, min(pairs, len(possible)))]
    return found


def questions_of_preferences(items: Sequence[JudgeItem], preferences: pa.Table) -> list[Question]:
    """Lists the pairs of a round's preferences, in their order; a pair of one text twice is no question."""
    by_id = {item.prompt_id: item for item in items}
    found = []
    for row in preferences.select(["prompt_id", "kind", "candidates"]).to_pylist():
        if row["kind"] == "pair":
            item = by_id[row["prompt_id"]]
            answers = {answer.index: answer for answer in item.candidates}
            first, second = (answers[index] for index in row["candidates"])
            if first.text != second.text:
                found.append(Question(item, (first, second)))
    return found


def unanswered(questions: Iterable[Question], choices: Iterable[Choice]) -> int:
    """Counts the questions that nobody has answered; a skip is an answer."""
    answered = {choice["question"] for choice in choices if choice["choice"] in ANSWERED}
    return sum(question.key not in answered for question in questions)


def share_for_first(question: Question, choices: Iterable[Choice]) -> float | None:
    """Returns the share of those who decided that prefer the first answer, ties half; None if nobody decided."""
    first = digest(question.answers[0].text)
    votes = [
        0.5 if choice["choice"] == "tie" else float(choice["better"] == first)
        for choice in choices
        if choice["question"] == question.key and choice["choice"] in DECIDED
    ]
    return sum(votes) / len(votes) if votes else None


def override_pairs(preferences: pa.Table, items: Sequence[JudgeItem], choices: Sequence[Choice]) -> pa.Table:
    """Puts people's choices in place of the judge's, pair by pair.

    The majority of those who decided counts: the order is theirs, and the soft label (if the pair has one) is their
    share. The rule ends in ``, people``. Equal shares are a tie, and dropped as such. Scores and margin stay the
    judge's, in the new order: a negative margin tells that it disagrees.
    """
    questions = {_row_key(question): question for question in questions_of_preferences(items, preferences)}
    by_question: dict[str, list[Choice]] = {}
    for choice in choices:
        by_question.setdefault(choice["question"], []).append(choice)
    rows = []
    for row in preferences.to_pylist():
        question = questions.get((row["prompt_id"], tuple(row["candidates"])))
        share = share_for_first(question, by_question.get(question.key, ())) if question else None
        rows.append(row if share is None else _decided(row, share))
    return to_table(rows, PREFERENCES)


def _row_key(question: Question) -> tuple[str, tuple[int, ...]]:
    return question.prompt.prompt_id, tuple(answer.index for answer in question.answers)


def _decided(row: dict[str, Any], share: float) -> dict[str, Any]:
    rule = f"{row['rule']}, people"
    lists = ("candidates", "scores", "reference_logps", "token_counts")
    if share == 0.5:
        none = dict.fromkeys(lists, ()) | dict.fromkeys(("margin", "soft_label", "ranks"))
        return {**row, **none, "kind": "dropped", "rule": rule, "drop_reason": "tie"}
    soft = None if row["soft_label"] is None else max(share, 1 - share)
    if share > 0.5:
        return {**row, "rule": rule, "soft_label": soft}
    turned = {name: row[name][::-1] for name in lists}
    return {**row, **turned, "margin": -row["margin"], "rule": rule, "soft_label": soft}
