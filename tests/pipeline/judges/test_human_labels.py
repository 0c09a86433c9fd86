"""What people choose: the questions, the shares, the judge made of them, and choices that override another judge."""

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.human import HumanConfig, HumanJudge
from pipeline.judges.support.human_labels import (
    Question,
    digest,
    override_pairs,
    questions_of_candidates,
    questions_of_preferences,
    share_for_first,
    unanswered,
)
from pipeline.recipe import Recipe
from pipeline.records import PREFERENCES, to_table
from support.finished_run import small_recipe


def item(prompt_id: str, *texts: str) -> JudgeItem:
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(texts)]
    return JudgeItem(prompt_id=prompt_id, prompt_text=prompt_id, candidates=candidates)


def choice(question: Question, labeller: str, better: str | None, kind: str = "better") -> dict[str, Any]:
    return {
        "question": question.key, "prompt_id": question.prompt.prompt_id, "labeller": labeller, "choice": kind,
        "better": None if better is None else digest(better),
    }  # fmt: skip


def test_a_question_has_two_different_texts_and_one_name_wherever_it_is_asked() -> None:
    asked = item("p", "a", " ", "b", "a", "c")
    found = questions_of_candidates([asked], pairs=9, seed=0)
    assert sorted(tuple(answer.text for answer in question.answers) for question in found) == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert questions_of_candidates([asked], 1, seed=0) == questions_of_candidates([asked], 1, seed=0)
    drawn = {questions_of_candidates([asked], 1, seed=seed)[0].key for seed in range(20)}
    assert drawn == {question.key for question in found}
    assert questions_of_candidates([item("p", "a", "a")], 1, seed=0) == []
    (one,), (turned,) = (questions_of_candidates([item("p", *texts)], 1, seed=0) for texts in (("x", "y"), ("y", "x")))
    assert one.key == turned.key
    (other,) = questions_of_candidates([item("q", "x", "y")], 1, seed=0)
    assert other.key != one.key


def test_shares_count_who_decided() -> None:
    (question,) = questions_of_candidates([item("p", "x", "y")], 1, seed=0)
    said = [choice(question, "ann", "x"), choice(question, "bob", "y"), choice(question, "cid", "x")]
    assert share_for_first(question, said) == pytest.approx(2 / 3)
    assert share_for_first(question, [*said, choice(question, "dan", None, "tie")]) == pytest.approx(2.5 / 4)
    undecided = [choice(question, "ann", None, "skip"), choice(question, "bob", None, "withdrawn")]
    assert share_for_first(question, undecided) is None
    assert unanswered([question], undecided) == 0  # a skip is an answer
    assert unanswered([question], undecided[1:]) == 1


def test_people_as_a_judge() -> None:
    asked = item("p", "a", "b", "c")
    judge = make_judge(HumanConfig(kind="people", pairs=3))
    assert isinstance(judge, HumanJudge)
    questions = {
        frozenset(answer.text for answer in question.answers): question
        for question in questions_of_candidates([asked], 3, seed=4)
    }
    said = [
        choice(questions[frozenset("ab")], "ann", "a"),
        choice(questions[frozenset("ab")], "bob", "b"),
        choice(questions[frozenset("bc")], "ann", "c"),
    ]
    judge.use(said, seed=4)
    a, b, c = judge.judge([asked])
    # a: half of its one comparison; b: that half and none of the other; c: all of its one.
    assert (a.score, b.score, c.score) == (0.5, 0.25, 1.0)
    assert a.components == {"beats.1": 0.5}
    assert c.components == {"beats.1": 1.0}
    assert '"labeller": "bob"' in (a.raw or "")
    judge.use([], seed=4)
    assert {judgment.status for judgment in judge.judge([asked])} == {"unlabelled"}
    assert not HumanConfig(kind="people", pairs=3).states_uncertainty
    assert HumanConfig(kind="people").states_uncertainty


def row(prompt_id: str, order: list[int], scores: list[float], soft: float | None = None) -> dict[str, Any]:
    return dict.fromkeys(PREFERENCES.names) | {
        "prompt_id": prompt_id, "kind": "pair", "candidates": order, "scores": scores, "margin": scores[0] - scores[1],
        "soft_label": soft, "reference_logps": [-float(index) for index in order],
        "token_counts": [10 + index for index in order], "rule": "best_vs_worst", "drop_reason": None, "policy": "x",
    }  # fmt: skip


def test_where_people_chose_they_decide() -> None:
    names = ("turned", "kept", "tied", "silent", "majority")
    items = [item(name, "x", "y") for name in names]
    rows = [row(name, [1, 0], [0.9, 0.4], 0.7) for name in names]
    table = to_table(rows, PREFERENCES)
    q = {question.prompt.prompt_id: question for question in questions_of_preferences(items, table)}
    said = [
        choice(q["turned"], "ann", "x"),
        choice(q["kept"], "ann", "y"),
        choice(q["tied"], "ann", "x"), choice(q["tied"], "bob", "y"),
        choice(q["silent"], "ann", None, "skip"),
        choice(q["majority"], "ann", "x"), choice(q["majority"], "bob", "x"), choice(q["majority"], "cid", "y"),
    ]  # fmt: skip
    after = {found["prompt_id"]: found for found in override_pairs(table, items, said).to_pylist()}
    turned = after["turned"]
    assert (turned["candidates"], turned["scores"], turned["margin"]) == ([0, 1], [0.4, 0.9], pytest.approx(-0.5))
    assert (turned["reference_logps"], turned["token_counts"]) == ([0.0, -1.0], [10, 11])
    assert (turned["rule"], turned["soft_label"]) == ("best_vs_worst, people", 1.0)
    assert after["kept"] == rows[1] | {"rule": "best_vs_worst, people", "soft_label": 1.0}
    assert (after["tied"]["kind"], after["tied"]["drop_reason"], after["tied"]["candidates"]) == ("dropped", "tie", [])
    assert after["silent"] == rows[3]
    assert (after["majority"]["candidates"], after["majority"]["soft_label"]) == ([0, 1], pytest.approx(2 / 3))


def test_without_choices_nothing_changes() -> None:
    table = to_table([row("p", [1, 0], [0.9, 0.4])], PREFERENCES)
    assert override_pairs(table, [item("p", "x", "y")], []).equals(table)
    assert isinstance(table, pa.Table)


def test_recipes_in_which_people_cannot_be_asked() -> None:
    with pytest.raises(ValidationError, match="people are the judge already"):
        small_recipe(judge={"kind": "people"}, people={})
    ranking = {"preferences": {"rule": "full_ranking"}, "update": {"objective": {"plackett_luce": 1.0}}}
    with pytest.raises(ValidationError, match="people choose between two answers"):
        small_recipe(people={"wait_for": 3}, **ranking)
    assert isinstance(small_recipe(people={"wait_for": 3}), Recipe)
    with pytest.raises(ValidationError, match="held-out prompts have one"):
        small_recipe(judge={"kind": "people"}, evaluation={"prompts": 5})
