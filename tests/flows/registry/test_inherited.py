"""Rounds that a fork has of its parent: read by the recipe, and with the judge, by which they were made."""

from typing import Any

import pytest

from flows.registry.inherited import first_judges, trainer
from flows.registry.resume import header
from flows.registry.round_summary import RoundSummary
from flows.view.filters import Filter
from flows.view.pages import completions, prompt
from flows.view.site import OpenRun, Site
from flows.view.update_effects import effects
from pipeline.records import CANDIDATES, EVALUATION_LOGPS, JUDGMENTS, to_table
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from storage.queries.sql import select
from support.finished_run import commit, prompts_table, small_recipe
from support.view_pages import visitor, words

FIRST = small_recipe(update={"beta": 0.1})
SECOND = small_recipe(
    update={"beta": 0.5}, judge={"kind": "grammar"}, evaluation={"prompts": 5, "judges": [{"kind": "vader"}]}
)
THIRD = small_recipe(update={"beta": 2.0}, judge={"kind": "vader", "sees_thought": True})
LINE = {"first": (FIRST, None, 1), "second": (SECOND, 1, 2), "third": (THIRD, 2, 3)}
"""By name: the recipe, the parent's round that it starts from, and its own last round."""
SCORES = {"vader": 0.25, "grammar": 0.75}


@pytest.fixture
def store() -> Store:
    store, parent = Store.open("memory://"), None
    for name, (recipe, start, last) in LINE.items():
        more = {} if parent is None else {"parent": {"run": parent, "round": start}}
        run = store.create_run(name, {**header(recipe), **more})
        with run.writer() as writer:
            commit(store, writer, name, 0, "prompts", prompts_table())
            for number in range(last + 1):
                trained_by = "first" if number < 2 else "second" if number == 2 else "third"
                _round(store, writer, name, number, "grammar" if trained_by == "second" else "vader")
        parent = name
    return store


def _round(store: Store, writer: Writer, run: str, number: int, judge: str) -> None:
    """A round with one held-out answer: -3 nats after the update, -4 before it, and -5 under the initial policy."""
    candidate = {
        "prompt_id": "e0", "candidate": 0, "token_ids": [3], "logprobs": [-3.0], "text": "x", "finish_reason": "stop",
        "seed": 0, "policy": f"policy{number}",
    }  # fmt: skip
    rest: dict[str, Any] = {"score_std": None, "components": [], "rationale": None, "latency": 0.0, "raw": None}
    judged = [
        {"prompt_id": "e0", "candidate": 0, "score": score, "judge": name, "judge_version": "1", "status": "ok", **rest}
        for name, score in SCORES.items()
    ]
    logps = {"prompt_id": "e0", "candidate": 0, "policy": -3.0, "previous": -4.0, "initial": -5.0, "tokens": 1}
    commit(store, writer, run, number, "eval_candidates", to_table([candidate], CANDIDATES))
    commit(store, writer, run, number, "eval_judgments", to_table(judged, JUDGMENTS))
    if number:
        commit(store, writer, run, number, "eval_logps", to_table([logps], EVALUATION_LOGPS))
    summary = RoundSummary(
        round=number, policy=f"policy{number}", reference="policy0" if number else None, judge=judge,
        reward=SCORES[judge], reward_se=None, judges={}, length=1.0, truncated=0.0, distinct=1.0,
        entropy_per_token=2.0, handover_drift=0.0, sampled_tokens=1, seconds={"sample": 1.0},
    )  # fmt: skip
    writer.finish_round(number, summary.model_dump(mode="json"))


def rewards(opened: OpenRun, number: int) -> tuple[float | None, float | None]:
    """The implicit rewards of the held-out answer before and after the update of a round."""
    (effect,) = effects(opened, number, "held-out", "e0", [{"candidate": 0, "logp": -3.0}])
    return effect.reward_before, effect.reward_after


def test_implicit_rewards_have_the_beta_of_the_run_that_trained(store: Store) -> None:
    """Before it, the update of a round has a log-ratio of 1 nat to the initial policy, and after it one of 2 nats.

    In round 1 the policy before it is the reference itself: its log-probability is asked for by the same digest, and
    that of the last one to be named counts.
    """
    opened = Site(store).run("third")
    assert rewards(opened, 2) == (0.5, 1.0)
    assert rewards(opened, 3) == (2.0, 4.0)
    assert rewards(opened, 1) == (0.0, pytest.approx(0.1))
    assert rewards(Site(store).run("second"), 2) == (0.5, 1.0)
    assert [found.name for n in range(4) if (found := trainer(store, opened.run, n))] == [
        "first", "first", "second", "third",
    ]  # fmt: skip


def test_of_a_parent_that_is_gone_or_another_nothing_is_measured(store: Store) -> None:
    def remove(name: str) -> None:
        keys = [item.key for item in store.objects.listing(f"runs/{name}/")]
        store.objects.delete(keys)

    remove("first")
    opened = Site(store).run("third")
    assert (rewards(opened, 1), rewards(opened, 2)) == ((None, None), (0.5, 1.0))
    browser = visitor(Site(store))
    shown = words(browser.get("/run/third/prompt/e0?round=1&kind=held-out").text)
    assert "The implicit reward is not measured: the run that trained this round is gone" in shown
    assert "beta (0.5)" in words(browser.get("/run/third/prompt/e0?round=2&kind=held-out").text)
    remove("second")
    another = store.create_run("second", header(THIRD))
    with another.writer() as writer:
        for number in range(3):
            writer.finish_round(number, {"round": number, "policy": "another"})
    assert rewards(Site(store).run("third"), 2) == (None, None)


def scores(opened: OpenRun, query: str) -> dict[int, tuple[str, float]]:
    """By round, the judge that counts and its score, as the page and its statement both have them."""
    shown = completions.page(opened, Filter.parse([part.split("=") for part in query.split("&")])).values  # type: ignore[misc]
    rows = {row["round"]: (row["judge"], row["score"]) for row in shown["rows"]}
    there = select(opened.store, opened.run, shown["sql"]).to_pylist()
    assert {row["round"]: row["score"] for row in there} == {number: score for number, (_, score) in rows.items()}
    return rows


def test_inherited_rounds_keep_the_judge_of_their_reward(store: Store) -> None:
    """The second run hears another judge than the first and the third do: only its own round 2 has its score first."""
    vader, grammar = ("vader", 0.25), ("grammar", 0.75)
    site = Site(store)
    assert scores(site.run("first"), "kind=held-out") == {0: vader, 1: vader}
    assert scores(site.run("second"), "kind=held-out") == {0: vader, 1: vader, 2: grammar}
    assert scores(site.run("third"), "kind=held-out") == {0: vader, 1: vader, 2: grammar, 3: vader}
    assert scores(site.run("second"), "judge=grammar") == {2: grammar}
    assert scores(site.run("third"), "score_min=0.5") == {2: grammar}


def test_rounds_that_are_inherited_while_the_run_is_open_have_their_judge(store: Store) -> None:
    site = Site(store)
    run: Run = store.create_run("late", {**header(SECOND), "parent": {"run": "first", "round": 1}})
    assert site.run("late").tables.ask("SELECT * FROM answers") == []
    assert first_judges(run) == {}
    with run.writer() as writer:
        for number in range(2):
            _round(store, writer, "late", number, "vader")
    assert scores(site.run("late"), "kind=held-out") == {0: ("vader", 0.25), 1: ("vader", 0.25)}


def test_evidence_is_read_by_the_judges_of_the_run_that_was_judged(store: Store) -> None:
    """The judge of the last run sees thoughts, and that of the same name in its parents does not."""
    opened = Site(store).run("third")

    def sees_thought(round: int) -> bool | None:
        (answer,) = prompt._with_evidence(opened, [{"candidate": 0, "text": "x", "answer": None}], "eval_", round, "e0")
        return next(judged.sees_thought for judged in answer.judged if judged.row["judge"] == "vader")

    assert [sees_thought(number) for number in range(4)] == [False, False, False, True]
