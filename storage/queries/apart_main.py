"""The process in which questions are answered: it reads them as lines of JSON, and ends when there are no more.

Its limits are the operating system's: an alarm that ends it whatever it is doing, and a bound on its addresses.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import IO, Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from storage.errors import DamagedFileError, QueryError, StoreError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.duckdb import Limits, too_large
from storage.queries.sql import open_rounds, select

_GRACE_SECONDS = 0.5
"""After the statement's own limit, which leaves the process alive."""
_BESIDE = 400_000_000
"""Bytes of addresses beyond the limit, for the stacks of threads, and what allocators reserve."""
_MOST_BYTES = 64_000_000
"""Of an answer."""


def main() -> None:
    """Answers questions until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent, which closes the pipe
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(2)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        _answer(json.loads(line), answers)


def _answer(asked: Mapping[str, Any], answers: IO[bytes]) -> None:
    limits = Limits(**asked["limits"])
    signal.setitimer(signal.ITIMER_REAL, limits.seconds + _GRACE_SECONDS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    addresses = psutil.Process().memory_info().vms + limits.memory + _BESIDE
    resource.setrlimit(resource.RLIMIT_AS, (addresses, hard))
    body = b""
    try:
        body = _body(asked, limits)
        said: dict[str, Any] = {"bytes": len(body)}
    except StoreError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    except (MemoryError, pa.ArrowMemoryError):
        said = {"error": QueryError.__name__, "message": str(too_large(limits))}
    answers.write(json.dumps(said).encode() + b"\n" + body)
    answers.flush()
    signal.setitimer(signal.ITIMER_REAL, 0)


def _body(asked: Mapping[str, Any], limits: Limits) -> bytes:
    store = _store(asked["root"])
    run = store.run(asked["run"], intact_part=True)
    table = _selected(store, run, asked, limits)
    columns = [_cut(column, asked["letters"]) for column in table.columns]
    table = pa.table(columns, names=table.column_names)
    if table.nbytes > _MOST_BYTES:
        raise QueryError(
            f"the answer has {table.nbytes / 1e6:,.0f} MB, more than {_MOST_BYTES / 1e6:.0f}: ask for fewer rows, or "
            "for parts of the lists"
        )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _selected(store: Store, run: Run, asked: Mapping[str, Any], limits: Limits) -> pa.Table:
    given = {name: asked[name] for name in ("sql", "rows", "offset")}
    try:
        return select(store, run, **given, limits=limits, opened=_open_again)
    except DamagedFileError:  # what was opened before may be gone since: opened anew, it says in what way
        _kept.cache_clear()
        return select(store, run, **given, limits=limits)


def _open_again(store: Store, rounds: Mapping[int, Sequence[FileRef]]) -> ds.Dataset:
    """Opens the files of a stage; those on a disk that an earlier question has opened are not looked at again."""
    (first, *_), *_ = rounds.values()
    if store.objects.local_path(first.path) is None:
        return open_rounds(store, rounds)
    return _kept(store, tuple((number, tuple(files)) for number, files in rounds.items()))


@lru_cache(maxsize=16)
def _kept(store: Store, rounds: tuple[tuple[int, tuple[FileRef, ...]], ...]) -> ds.Dataset:
    return open_rounds(store, dict(rounds))


@lru_cache(maxsize=4)
def _store(root: str) -> Store:
    return Store.open(root, create=False)


def _cut(column: pa.ChunkedArray, letters: int) -> pa.ChunkedArray:
    texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return pc.utf8_slice_codeunits(column, 0, letters) if texts else column


if __name__ == "__main__":
    main()
