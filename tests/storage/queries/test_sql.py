"""SQL over the rounds of a run: what people write, and what programs ask."""

from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import NotCommittedError, QueryError
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.sql import Source, ask, select
from storage.tables.shards import write_table


@pytest.fixture
def run(store: Store) -> Run:
    """Three rounds of items; of notes only in round 1."""
    run = store.create_run("a", {})
    with run.writer() as writer:
        for number in range(3):
            for stage in ("items", "notes") if number == 1 else ("items",):
                table = pa.table({"id": ["x", "y"], "value": [number, 10 * number]})
                writer.commit(Key(number, stage), [write_table(store, "a", number, stage, table)])
            writer.finish_round(number, {"loss": number / 2})
    return run


def test_select_over_rounds(store: Store, run: Run) -> None:
    summed = select(store, run, "select round, sum(value) s from items group by all order by all")
    assert summed.to_pylist() == [{"round": 0, "s": 0}, {"round": 1, "s": 11}, {"round": 2, "s": 22}]
    joined = "select i.id, r.loss from items i join rounds r using (round) join notes n using (id) where i.round = 2"
    assert select(store, run, joined).sort_by("id").to_pylist() == [{"id": "x", "loss": 1.0}, {"id": "y", "loss": 1.0}]


@pytest.mark.parametrize("columns", ["1 as a, 2 as a", '1 as a, 2 as a, 3 as a_1, 4 as "A"', '1, 1, null as "1"'])
def test_part_of_an_answer_has_the_columns_of_the_whole(local: Store, columns: str) -> None:
    local.create_run("a", {})
    sql = f"select {columns} from range(5)"  # noqa: S608  columns of ours
    whole = select(local, local.run("a"), sql)
    part = select(local, local.run("a"), sql, rows=2, offset=1)
    assert part.equals(whole.slice(1, 2))
    assert len(set(part.column_names)) < part.num_columns


def test_a_program_asks_with_parameters_of_some_rounds(store: Store, run: Run) -> None:
    sql = "select round, value from items where value > $least order by all"
    assert ask(store, run, sql, [Source("items")], {"least": 1}).to_pylist() == [
        {"round": 1, "value": 10}, {"round": 2, "value": 2}, {"round": 2, "value": 20},
    ]  # fmt: skip
    assert ask(store, run, sql, [Source("items", {1})], {"least": 1}).num_rows == 1
    beside = {"_wanted": pa.table({"id": ["y"]})}
    sql = "select i.value from items i join _wanted using (id) left join notes n using (round, id) where n.id is null"
    assert sorted(ask(store, run, sql, map(Source, ("items", "notes")), beside=beside)["value"].to_pylist()) == [0, 20]


def test_a_program_asks_for_what_was_not_committed(store: Store, run: Run) -> None:
    with pytest.raises(NotCommittedError, match="run 'a' has no others"):
        ask(store, run, "select * from others", [Source("others")])
    with pytest.raises(NotCommittedError, match="round 0, 2 of run 'a' has no notes"):
        ask(store, run, "select * from notes", [Source("notes", {2, 0})])
    empty = pa.schema([("round", pa.int32()), ("id", pa.string())])
    assert ask(store, run, "select * from notes", [Source("notes", {2}, empty)]).column_names == ["round", "id"]


def test_select_only_reads(store: Store, run: Run, tmp_path: Path) -> None:
    for sql in (
        "select nope from items",
        "select * from '/etc/passwd'",
        "select 1; select 2",
        "",
        "drop table items",
        "create table x as select 1",
        f"attach '{tmp_path}/x.db'",
        f"copy items to '{tmp_path}/x.csv'",
        "set enable_external_access = true",
        "install httpfs",
    ):
        with pytest.raises(QueryError):
            select(store, run, sql)
    assert list(tmp_path.iterdir()) == []
