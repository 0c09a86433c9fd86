"""What stays open: runs that are written, deleted or made anew while they are looked at, and their tables in memory."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from flows.registry.resume import header
from flows.view import site
from flows.view.pages import runs
from flows.view.routes import runs as routes
from flows.view.site import Site, UnreadableRunError
from flows.view.warm_up import warm_up
from storage.errors import RunNotFoundError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.retention.prune import delete_run
from support.finished_run import finished_run, small_recipe
from support.view_pages import visitor, words

_COUNT = "SELECT max(round) AS newest, count(*) AS n FROM completions"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


class _Connected:
    """A browser that stays."""

    async def is_disconnected(self) -> bool:
        return False


def told(opened: Site, name: str, changes: Iterator[Any]) -> list[Any]:
    """What a browser is told, as the changes are made one after the other."""

    async def listen() -> list[Any]:
        found = []
        async for event in routes._events(opened, name, _Connected()):  # type: ignore[arg-type]
            found.append(json.loads(event.removeprefix("data: ")) if event.startswith("data") else None)
            if next(changes, "none") == "none":
                return found
        return [*found, "the end"]

    return asyncio.run(listen())


def test_each_entry_of_the_log_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later stage may be of a round that stands earlier, and the end of a round is no commit."""
    monkeypatch.setattr(routes, "_POLL_SECONDS", 0.0)
    run = store.create_run("live", header(small_recipe()))

    def changes() -> Iterator[Any]:
        with run.writer() as writer:
            yield "the session, entry 1"
            writer.commit(Key(0, "candidates", 0), [])
            yield "entry 2"
            writer.commit(Key(0, "judgments", 0), [])
            yield "entry 3"
            writer.commit(Key(0, "candidates", 1), [])
            yield "entry 4, which is listed before entry 3"
            writer.finish_round(0, {"round": 0})
            yield "entry 5, the round"
            yield "nothing"
        yield "entry 6, its end"

    found = told(Site(store), "live", changes())
    assert [event and event[0] for event in found] == [0, 1, 2, 3, 4, 5, None, 6]
    assert [event[1] for event in found if event] == ["stopped", *["running"] * 5, "stopped"]


def test_who_listens_to_a_run_that_is_deleted_is_let_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_POLL_SECONDS", 0.0)
    finished_run(store, rounds=0)

    def changes() -> Iterator[Any]:
        yield delete_run(store, "small")
        yield "not reached"

    assert told(Site(store), "small", changes())[1:] == ["the end"]


def test_a_run_that_is_deleted_is_gone_and_one_of_its_name_is_another(store: Store) -> None:
    finished_run(store, rounds=2)
    opened = Site(store)
    browser = visitor(opened)
    assert opened.run("small").tables.ask(_COUNT) == [{"newest": 2, "n": 3 * 5 + 2 * 12}]
    delete_run(store, "small")
    assert browser.get("/run/small").status_code == 404
    with pytest.raises(RunNotFoundError):
        opened.run("small")
    finished_run(store, rounds=1, recipe=small_recipe(description="The second."))
    assert "The second." in browser.get("/run/small").text
    assert opened.run("small").tables.ask(_COUNT) == [{"newest": 1, "n": 2 * 5 + 12}]
    # As another process does it, between two requests.
    delete_run(store, "small")
    finished_run(store, rounds=0, recipe=small_recipe(description="The third."))
    assert "The third." in browser.get("/run/small").text
    assert opened.run("small").tables.ask(_COUNT) == [{"newest": 0, "n": 5}]


def test_tables_go_when_others_are_looked_into_and_not_under_a_request(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "_MOST_TABLES", 2)
    for name in "abcd":
        finished_run(store, name, rounds=0)
    opened = Site(store)
    of_a = opened.run("a").tables
    assert opened.run("a").tables is of_a
    browser = visitor(opened)
    for path in ("/", "/compare?run=b&run=c", "/"):  # these need no tables, however many runs there are
        assert browser.get(path).status_code == 200
    assert opened.run("a").tables is of_a
    for name in "bcd":
        assert opened.run(name).tables.ask(_COUNT) == [{"newest": 0, "n": 5}]
    assert of_a.ask(_COUNT) == [{"newest": 0, "n": 5}]  # a request that is still at work
    assert opened.run("a").tables is not of_a
    assert opened.run("d").tables is opened.run("d").tables


@pytest.fixture
def odd(store: Store) -> TestClient:
    """Runs that another version might have made, beside one of this."""
    finished_run(store, rounds=1)
    run = store.create_run("later", header(small_recipe()))
    with run.writer() as writer:
        writer.finish_round(0, {**store.run("small").round_entry(0).meta, "of_next_year": 1})
    store.create_run("bare", {"format": 1})
    store.create_run("listed", {"format": 1, "recipe": ["a"], "parent": "small"})
    finished_run(store, "orphan", rounds=0, parent={"run": "gone"})
    return visitor(Site(store))


def test_an_odd_run_is_a_row_of_the_list(odd: TestClient, store: Store) -> None:
    rows = {row.name: row.state for row in runs.page(Site(store)).values["runs"]}
    assert rows == {
        "bare": "unreadable", "later": "unreadable", "listed": "damaged", "orphan": "damaged",
        "small": "stopped",  # after one of three rounds
    }  # fmt: skip
    shown = odd.get("/")
    assert shown.status_code == 200
    assert words(shown.text).count("unreadable") == 2


@pytest.mark.parametrize("name", ["bare", "later", "listed", "orphan"])
@pytest.mark.parametrize("page", ["", "/round/0", "/judges", "/completions", "/prompt/e0", "/label", "/ask", "/try"])
def test_the_pages_of_an_odd_run_say_a_sentence(odd: TestClient, name: str, page: str) -> None:
    """Or what can be shown of it without what cannot be read."""
    answer = odd.get(f"/run/{name}{page}")
    assert answer.status_code in (200, 400, 404)
    if page in ("", "/round/0", "/judges"):
        assert answer.status_code in (400, 404)
        assert 'class="problem"' in answer.text
    if name == "later" and page == "":
        assert "cannot be read by this version of rondo, because of of_next_year" in words(answer.text)


def test_an_unreadable_recipe_names_what_is_wrong(odd: TestClient, store: Store) -> None:
    with pytest.raises(UnreadableRunError, match="run 'bare' cannot be read by this version of rondo, because of 'rec"):
        _ = Site(store).run("bare").recipe
    assert "run &#39;bare&#39; cannot be read" in odd.get("/run/bare").text


def test_a_run_that_is_named_is_read_before_anybody_asks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 0 has 5 completions, each of the 3 others 17; of a run that is gone its page says so, and not this."""
    finished_run(store)
    opened = Site(store)
    warm_up(opened, "small")
    warm_up(opened, "none")

    def read(*_: object) -> None:
        raise AssertionError("it was read already")

    monkeypatch.setattr("storage.queries.memory.open_rounds", read)
    assert opened.run("small").tables.ask(_COUNT) == [{"newest": 3, "n": 5 + 3 * 17}]
