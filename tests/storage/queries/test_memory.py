"""A run's tables in memory: what is kept of them if a file cannot be read for a while."""

import pyarrow as pa
import pytest

from storage.errors import DamagedFileError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.queries.memory import Held, MemoryTables
from storage.tables.shards import write_table

COLUMNS = pa.schema([("round", pa.int32()), ("value", pa.int64())])
STAGES = ("items", "notes")
DERIVED = {"doubled": "SELECT round, 2 * value AS twice FROM items UNION ALL SELECT round, value FROM notes"}


def test_rounds_that_were_read_before_another_failed_are_derived_later(local: Store) -> None:
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
            with pytest.raises(DamagedFileError, match="is missing"):
                tables.refresh()
            assert tables.ask("FROM doubled") == [{"round": 0, "twice": 20}], "what it was before"
        moved.rename(path)
        tables.refresh()
    expected = [{"round": 0, "twice": 20}, {"round": 1, "twice": 22}, {"round": 2, "twice": 12}]
    assert tables.ask("FROM doubled ORDER BY round") == expected
    tables.close()
