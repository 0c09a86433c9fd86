"""A run's tables in memory: what is left out of them while a file cannot be read, and what types they have."""

import pyarrow as pa
import pytest

from storage.log.manifest import Key
from storage.log.store import Store
from storage.queries.memory import Held, MemoryTables
from storage.tables.shards import write_table

COLUMNS = pa.schema([("round", pa.int32()), ("value", pa.int64())])
STAGES = ("items", "notes")
DERIVED = {"doubled": "SELECT round, 2 * value AS twice FROM items UNION ALL SELECT round, value FROM notes"}


def test_a_missing_file_is_left_out_and_said_until_it_is_there_again(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items of round 1 are read, then the notes of round 2 are missing; then they are there again."""
    run = local.create_run("a", {})
    with run.writer() as writer:

        def put(number: int, stage: str) -> str:
            file = write_table(local, "a", number, stage, pa.table({"value": [10 + number]}))
            writer.commit(Key(number, stage), [file])
            return file.path

        held = {stage: Held({stage: "SELECT round, value FROM committed"}, COLUMNS) for stage in STAGES}
        tables = MemoryTables(local, local.run("a"), held, DERIVED)
        put(0, "items")
        tables.refresh()
        put(1, "items")
        path = local.objects.local_path(put(2, "notes"))
        assert path is not None
        moved = path.rename(path.with_name("moved"))
        for _ in range(2):
            tables.refresh()
            assert tables.ask("FROM doubled ORDER BY round") == [{"round": 0, "twice": 20}, {"round": 1, "twice": 22}]
            assert list(tables.damaged) == [local.run("a").files(2, "notes")[0].path]
            assert "is missing" in next(iter(tables.damaged.values()))
        moved.rename(path)
        tables.refresh()
        assert tables.damaged, "it is tried again after a while"
        monkeypatch.setattr("storage.queries.memory.time.monotonic", lambda: tables._again)
        tables.refresh()
        assert tables.damaged == {}
    expected = [{"round": 0, "twice": 20}, {"round": 1, "twice": 22}, {"round": 2, "twice": 12}]
    assert tables.ask("FROM doubled ORDER BY round") == expected
    tables.close()
