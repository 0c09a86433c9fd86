"""Parquet files that lie, at random and on purpose: an error of this package; never a crash, a hang, or gigabytes.

The files are committed with the digest that fits them: what is tested is the reader behind the digest. In processes of
their own, so that a crash would be seen, and their memory is theirs alone.
"""

import io
import multiprocessing
import resource
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import StoreError
from storage.log.manifest import FileRef, digest_of
from storage.log.store import Store
from storage.tables.datasets import open_dataset
from storage.tables.shards import read_table

EXAMPLES = 300
SECONDS = 120.0  # for all of them; one takes a millisecond
MEMORY_KB = 300_000  # beyond what the process holds when it starts to read
KEY = "runs/a/rounds/0001/candidates-all-0.parquet"


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


SEEDS = [
    _parquet(
        pa.table({
            "prompt_id": ["a", "b"] * 50,
            "token_ids": [list(range(i % 7)) for i in range(100)],
            "logprobs": [[0.5] * (i % 5) for i in range(100)],
            "components": pa.array([[("x", 1.0)]] * 100, pa.map_(pa.string(), pa.float64())),
        }),
        compression=compression,
    )
    for compression in ("zstd", "none")
]  # fmt: skip


def _read(data: bytes, rows: int | None) -> None:
    """Reads in every way; only errors of this package may come out."""
    store = Store.open("memory://")
    store.objects.create(KEY, data)
    file = FileRef(KEY, len(data), digest_of(data), rows=rows)
    ways: list[Callable[[], object]] = [
        lambda: read_table(store, [file]),
        lambda: read_table(store, [file], ["prompt_id"], verify=False),
        lambda: open_dataset(store, [file]).schema,
    ]
    for way in ways:
        try:
            way()
        except StoreError:
            continue


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A Parquet file with some bytes changed, most of them in its footer, or cut, or doubled."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(footer, len(data) - 1) | st.integers(0, len(data) - 1))
        data[position] = draw(st.integers(0, 255))
    cut = draw(st.just(len(data)) | st.integers(0, len(data)))
    return bytes(data[:cut]) + bytes(data[draw(st.just(len(data)) | st.integers(0, len(data))) :])


def fuzz() -> None:
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(_damaged() | st.binary(max_size=300))
    def run(data: bytes) -> None:
        _read(data, 100)

    run()


def _repeated(groups: int) -> bytes:
    """Row groups of one value repeated: a hundred bytes each on disk, eight megabytes in memory."""
    table = pa.table({"prompt_id": pa.array([7] * 2**20, pa.int64())})
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, data_page_size=2**30, max_rows_per_page=2**20) as writer:
        for _ in range(groups):
            writer.write_table(table)
    return sink.getvalue()


def small_file_of_many_rows() -> None:
    data = _repeated(100)
    assert len(data) < 50_000
    _expect_refusal(data, 100 * 2**20)


def more_rows_than_were_committed() -> None:
    _expect_refusal(_repeated(100), 10)


def _expect_refusal(data: bytes, rows: int) -> None:
    store = Store.open("memory://")
    store.objects.create(KEY, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError):
        read_table(store, [FileRef(KEY, len(data), digest_of(data), rows=rows)])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY_KB, f"{grown} kB to refuse a file of {len(data)} bytes"


@pytest.mark.parametrize("attack", [fuzz, small_file_of_many_rows, more_rows_than_were_committed])
def test_lying_files(attack: Callable[[], None]) -> None:
    child = multiprocessing.get_context("spawn").Process(target=attack)
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        pytest.fail("the reader hangs")
    assert child.exitcode == 0
