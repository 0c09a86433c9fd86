"""The page of what another judge would change: hand-made scores beside a small run, and what follows from them."""

import html
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.view.site import Site
from storage.log.store import Store
from storage.queries.sql import select
from support.finished_run import TRAIN, finished_run
from support.rejudged import judge_again
from support.view_pages import links, statements, table, visitor, words


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("root"))
    finished_run(store)
    judge_again(store, {1: TRAIN, 2: TRAIN, 3: TRAIN[:1]})
    return store


@pytest.fixture
def asking(store: Store) -> TestClient:
    return visitor(Site(store))


def test_the_pairs_that_change_lead_to_their_prompts(asking: TestClient) -> None:
    """Of 3 x 6 pairs of completions this judge orders those of t1 alike: 6 of 18."""
    answer = asking.get("/run/small/rejudged/other")
    assert answer.status_code == 200
    said = words(answer.text)
    assert "Round 2: before is what the run has" in said, "the newest that is judged whole"
    assert "Judged in part, and not compared: round 3." in said
    assert "pairs 3 → 2 1 stay, of 3 → 2 prompts" in said
    assert "flip 1 preferred the other way round" in said
    assert "appear, vanish 0, 1" in said
    assert "12 of 12 scored by both" in said
    assert "agree on the order 33.3% of 18 pairs" in said
    # By the run's judge completion 3 has 0.03 more than completion 0; by the other one 0 has 3 more than 3.
    assert table(answer.text, "Pairs that change") == [
        ["t0", "flipped", "0", "3", "-0.03", "+3"], ["t2", "vanished", "3", "0", "+0.03", "+0"],
    ]  # fmt: skip
    for target in links(answer.text):
        if "/prompt/" in target:
            assert asking.get(target).status_code == 200
    assert "Round 1: before" in words(asking.get("/run/small/rejudged/other?round=1").text)
    assert "/run/small/rejudged/other" in links(asking.get("/run/small/judges").text)


def test_the_same_scores_in_sql(store: Store, asking: TestClient) -> None:
    sql, command = statements(asking.get("/run/small/rejudged/other").text)
    rows = select(store, store.run("small"), sql).to_pylist()
    assert len(rows) == 12
    assert [row["after"] for row in rows if row["prompt_id"] == "t0"] == [-0.0, -1.0, -2.0, -3.0]
    assert [round(row["before"], 9) for row in rows if row["prompt_id"] == "t0"] == [0.2, 0.21, 0.22, 0.23]
    assert command.startswith("rondo show small@2 --judgments other")


def test_what_cannot_be_compared_is_a_sentence(asking: TestClient) -> None:
    in_part = asking.get("/run/small/rejudged/other?round=3")
    assert in_part.status_code == 404
    sentence = "'other' beside round 3 of run 'small' cannot be compared: judged whole are rounds 1, 2"
    assert sentence in html.unescape(in_part.text)
    assert asking.get("/run/small/rejudged/none").status_code == 404
    assert "other" in asking.get("/run/small/rejudged/none").text


def test_a_run_that_was_judged_once_says_nothing_of_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    finished_run(store, rounds=1)
    assert "Judged again" not in visitor(Site(store)).get("/run/small/judges").text
