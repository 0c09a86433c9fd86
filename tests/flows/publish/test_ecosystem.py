"""Every kind of committed table opens with what people already use, as it lies on the disk."""

from pathlib import Path

import duckdb
import pandas
import pyarrow as pa
import pytest
from datasets import load_dataset

from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table
from support.finished_run import finished_run

STAGES = (
    "prompts",
    "candidates",
    "judgments",
    "preferences",
    "metrics",
    "eval_candidates",
    "eval_judgments",
    "eval_logps",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run]:
    store = Store.open(tmp_path_factory.mktemp("root"))
    return store, finished_run(store, rounds=2)


@pytest.fixture(params=STAGES)
def committed(request: pytest.FixtureRequest, finished: tuple[Store, Run]) -> tuple[str, pa.Table]:
    """The path of a committed table, and the table as the store reads it."""
    store, run = finished
    number = 0 if request.param == "prompts" else 2
    (file,) = run.files(number, request.param)
    return str(store.objects.local_path(file.path)), table(store, run, number, request.param)


def test_every_stage_is_here(finished: tuple[Store, Run]) -> None:
    _, run = finished
    assert {entry.key.stage for entry in run.entries() if entry.key} == set(STAGES)


def test_datasets(committed: tuple[str, pa.Table], tmp_path: Path) -> None:
    path, expected = committed
    whole = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path))
    streamed = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path), streaming=True)
    assert whole.column_names == expected.column_names
    assert [plain(row) for row in whole] == [plain(row) for row in expected.to_pylist()]
    assert [plain(row) for row in streamed] == [plain(row) for row in expected.to_pylist()]


def test_pandas(committed: tuple[str, pa.Table]) -> None:
    path, expected = committed
    frame = pandas.read_parquet(path)
    assert list(frame.columns) == expected.column_names
    first = expected.column_names[0]
    assert frame[first].tolist() == expected[first].to_pylist()
    assert len(frame) == expected.num_rows


def test_polars(committed: tuple[str, pa.Table]) -> None:
    polars = pytest.importorskip("polars", reason="polars is no dependency of rondo")
    path, expected = committed
    frame = polars.read_parquet(path)
    assert frame.columns == expected.column_names
    assert [plain(row) for row in frame.to_dicts()] == [plain(row) for row in expected.to_pylist()]
    first = expected.column_names[0]
    assert polars.scan_parquet(path).select(first).collect()[first].to_list() == expected[first].to_pylist()


def test_duckdb(committed: tuple[str, pa.Table]) -> None:
    path, expected = committed
    with duckdb.connect() as connection:
        found = connection.execute("SELECT * FROM read_parquet($path)", {"path": path}).to_arrow_table()
    assert found.column_names == expected.column_names
    assert [plain(row) for row in found.to_pylist()] == [plain(row) for row in expected.to_pylist()]


def plain(value: object) -> object:
    """A value without the differences in how readers spell a map: pairs, a dictionary, or key-value structs."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, dict) and set(item) == {"key", "value"} for item in value):
            return [(item["key"], item["value"]) for item in value]
        return [plain(item) for item in value] if isinstance(value, list) else value
    return value
