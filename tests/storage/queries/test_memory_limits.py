"""A question over tables in memory that takes too long: it is stopped, and the next one is answered."""

import time

import pyarrow as pa
import pytest

from storage.errors import QueryError
from storage.log.store import Store
from storage.queries import memory
from storage.queries.duckdb import Limits
from storage.queries.memory import MemoryTables

_FOR_YEARS = "SELECT count(*) AS n FROM range(10000000) AS a, range(10000000) AS b WHERE a.range * b.range % 7 = 3"


def limited(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> MemoryTables:
    monkeypatch.setattr(memory, "_LIMITS", limits)
    store = Store.open("memory://")
    few = pa.table({"round": pa.array([1, 2], pa.int32())})
    tables = MemoryTables(store, store.create_run("a", {}), {}, {"found": "SELECT * FROM few"}, beside={"few": few})
    tables.refresh()
    return tables


def test_a_question_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = limited(monkeypatch, Limits(seconds=0.5, memory=500_000_000))
    begun = time.monotonic()
    with pytest.raises(QueryError, match=r"took longer than 0\.5 s and was stopped"):
        tables.ask(_FOR_YEARS)
    assert time.monotonic() - begun < 60  # slow machines; without the limit it is years
    assert tables.ask("SELECT round FROM found") == [{"round": 1}, {"round": 2}]


def test_a_question_that_holds_too_much_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = limited(monkeypatch, Limits(seconds=60, memory=50_000_000))
    with pytest.raises(QueryError, match=r"needs more than 0\.05 GB of memory"):
        tables.ask("SELECT array_agg(a.range) AS n FROM range(500000000) AS a")
    assert tables.ask("SELECT round FROM found") == [{"round": 1}, {"round": 2}]
