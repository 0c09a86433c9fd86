"""The queues of a labeller, and what is read of a round for them."""

from pathlib import Path

import pyarrow as pa
import pytest

from flows.analysis.agreement import agreements
from flows.analysis.label_queues import in_queue, read_questions
from flows.analysis.labelling import Labelling, shown_order
from flows.registry.label_questions import missing_labels
from pipeline.errors import ConfigError
from pipeline.judges.support.human_labels import override_pairs
from pipeline.judges.support.tables import judge_items
from pipeline.records import JUDGMENTS, to_table
from storage.log.manifest import Key
from storage.log.store import Store
from storage.log.writer import Writer
from storage.tables.shards import read_table, write_table
from storage.tables.shared_values import Labels
from support.finished_run import TRAIN, finished_run, small_recipe
from support.labelled import asked_about, said


def test_each_queue_has_its_questions_in_its_order() -> None:
    asked = asked_about(
        5,
        {"all": [0.4, -0.1, 0.3, None, 0.0], "a": [1, -1, 1, None, 0], "b": [1, 1, -1, None, 0], "c": [1, 1, 1, 1, 1]},
    )
    q = asked.questions
    choices = [
        said(q[0], "ann", "first"), said(q[0], "bob", "first"), said(q[2], "ann", "first"), said(q[2], "bob", "tie"),
        said(q[1], "ann", "first"), said(q[1], "bob", "skip"), said(q[3], "ann", "withdrawn"),
    ]  # fmt: skip

    def places(queue: str, labeller: str = "cid", seed: int = 0) -> list[int]:
        return [q.index(question) for question in in_queue(asked, queue, choices, labeller, seed)]

    assert places("asked") == [3, 4, 0, 1, 2], "those that nobody has answered first"
    assert places("margin") == [4, 1, 2, 0], "by the training judge; question 3 has no scores"
    # Of the members a, b and c one is against two on 1 and 2; that of "all", which they make, is no vote.
    assert places("judges") == [1, 2]
    assert places("people") == [2], "a skip and what was taken back decide nothing"
    assert sorted(places("random")) == list(range(5))
    assert places("random") == places("random")
    assert len({tuple(places("random", "cid", seed)) for seed in range(20)}) > 5
    with pytest.raises(ConfigError, match=r"no queue 'best': give one of asked, random, margin, judges, people"):
        places("best")


def test_two_judges_are_compared_with_each_other() -> None:
    asked = asked_about(3, {"a": [1, 1, 0], "b": [1, -1, 1]})
    assert list(asked.disputes.values()) == [0.5]
    assert asked_about(2, {"a": [1, -1]}).disputes == {}


def test_what_the_judges_said_is_read_with_the_members_of_an_ensemble(tmp_path: Path) -> None:
    """The ensemble's scores rise with the index as in `finished_run`; member a follows it, member b turns it round."""
    members = [{"judge": {"kind": "vader", "name": name}} for name in ("a", "b")]
    recipe = small_recipe(judge={"kind": "ensemble", "name": "vader", "members": members})
    store = Store.open(tmp_path)

    def also(writer: Writer, number: int) -> None:
        if number == 2:
            file = write_table(store, "small", 2, "judgments", _judged())
            writer.commit(Key(2, "judgments", inputs="again"), [file])

    run = finished_run(store, "small", recipe=recipe, also=also)
    asked = read_questions(store, run, 2)
    assert [q.prompt.prompt_id for q in asked.questions] == list(TRAIN)
    assert [[answer.index for answer in q.answers] for q in asked.questions] == [[3, 0]] * 3
    found = {name: sorted(values.values()) for name, values in asked.differences.items()}
    assert list(found) == ["vader", "a", "b"]
    assert found == {"vader": [3.0] * 3, "a": [0.3] * 3, "b": [-30.0] * 3}
    assert len(asked.disputes) == 3
    assert read_questions(store, run, 1).disputes == {}, "its judgments tell nothing of members"


def test_what_people_decided_hides_no_pair_from_those_who_label(tmp_path: Path) -> None:
    """The round's preferences are then the table that people's choices made: a pair on which they are divided is gone.

    Round 3 lies in two shards, of which the first was committed twice.
    """
    store = Store.open(tmp_path)
    run = finished_run(store, "small", rounds=2, recipe=small_recipe(people={}))
    copied = {stage: read_table(store, run.files(2, stage)) for stage in ("candidates", "judgments", "preferences")}
    with run.writer() as writer:
        for stage in ("candidates", "judgments"):
            writer.commit(Key(3, stage), [write_table(store, "small", 3, stage, copied[stage])])
        judged = copied["preferences"]
        for shard, inputs, part in ((1, "", judged[2:]), (0, "old", judged[2:]), (0, "new", judged[:2])):
            file = write_table(store, "small", 3, "preferences", part, shard=shard)
            writer.commit(Key(3, "preferences", shard=shard, inputs=inputs), [file])
        before = read_questions(store, run, 3)
        labels = Labels(store)
        ann, bob = (Labelling(before, labels, name) for name in ("ann", "bob"))
        divided, agreed, _ = before.questions
        for labelling, sides in ((ann, "aa"), (bob, "ba")):
            for question, side in zip((divided, agreed), sides, strict=True):
                shown = shown_order(question, "", 0)["ab".index(side)]
                labelling.keep(question, "better", shown, {})
        items = judge_items(read_table(store, run.files(0, "prompts")), copied["candidates"])
        decided = override_pairs(judged, items, labels.newest())
        assert decided["kind"].to_pylist() == ["dropped", "pair", "pair"]
        writer.commit(Key(3, "preferences", inputs="people"), [write_table(store, "small", 3, "preferences", decided)])
    after = read_questions(store, run, 3)
    assert [q.key for q in after.questions] == [q.key for q in before.questions]
    assert after.differences == before.differences, "the order within a pair is the judge's still"
    assert [q.key for q in in_queue(after, "people", labels.newest(), "cid", 0)] == [divided.key]
    (people,) = (one for one in agreements(after, labels.newest()) if not one.is_judge)
    assert (people.pairs, people.share) == (2, 0.5)


def _judged() -> pa.Table:
    return to_table([
        {
            "prompt_id": prompt_id, "candidate": index, "score": float(index), "score_std": None, "judge": "vader",
            "components": [{"name": "a", "value": round(0.1 * index, 9)}, {"name": "b", "value": -10.0 * index}],
            "rationale": None, "judge_version": "1", "status": "ok", "latency": 0.0, "raw": None,
        }
        for prompt_id in TRAIN for index in range(4)
    ], JUDGMENTS)  # fmt: skip


def test_a_round_waits_for_as_many_labels_as_its_recipe_says() -> None:
    questions = asked_about(5).questions
    choices = [said(questions[0], "ann", "first"), said(questions[0], "bob", "skip"), said(questions[1], "ann", "tie")]

    def missing(**recipe: object) -> int:
        return missing_labels(small_recipe(**recipe), questions, choices)

    assert missing() == 0
    assert missing(people={"wait_for": 4}) == 2
    assert missing(people={"wait_for": 20}) == 3
    assert missing(people={"wait_for": 1}) == 0
    assert missing(judge={"kind": "human"}) == 3


def test_a_choice_is_kept_with_its_reasons_and_said_again_changes_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    finished_run(store, "small")

    def kept() -> list[tuple[str, int, list[str] | None, str | None]]:
        return [(c["choice"], c["number"], c.get("tags"), c.get("note")) for c in Labels(store).newest()]

    def labelling() -> Labelling:
        return Labelling.open("small@2", "ann", 0, str(tmp_path), "margin")

    first = labelling().questions[0]
    labelling().choose(first, "a", ["style", "correct"], " because \n")
    assert kept() == [("better", 0, ["correct", "style"], "because")]
    assert first.key not in {question.key for question in labelling().questions}
    assert (labelling().answered, labelling().given(first)) == (1, "a")
    labelling().choose(first, "a", ["correct", "style"], "because")
    assert kept()[0][1] == 0, "the same again"
    labelling().choose(first, "b")
    assert kept() == [("better", 1, None, None)]
    for _ in range(2):
        labelling().withdraw(first)
    assert kept() == [("withdrawn", 2, None, None)]
    assert labelling().last is None
    with pytest.raises(ConfigError, match="'fun' is no reason that can be given: give some of correct, clear"):
        labelling().choose(first, "a", ["fun"])
    with pytest.raises(ConfigError, match="the note has 2,001 characters: give at most 2,000"):
        labelling().choose(first, "a", note="x" * 2001)


def test_a_choice_counts_if_another_session_of_the_same_person_spoke_in_between(tmp_path: Path) -> None:
    """Two pages of one person: each compares with what is kept, not with what it has seen."""
    store = Store.open(tmp_path)
    finished_run(store, "small")
    one, other = (Labelling.open("small@2", "ann", 0, str(tmp_path)) for _ in range(2))
    question = one.questions[0]

    def kept() -> list[tuple[str, int]]:
        return [(choice["choice"], choice["number"]) for choice in Labels(store).newest()]

    other.choose(question, "tie")
    one.withdraw(question)
    assert kept() == [("withdrawn", 1)], "this page had seen nothing to take back"
    one.choose(question, "tie")
    other.choose(question, "skip")
    one.choose(question, "tie")
    assert kept() == [("tie", 4)]
    other.choose(question, "tie")
    assert kept() == [("tie", 4)], "it is said already"
    assert other.given(question) == "tie"
