"""Writers in processes of their own, for the tests in which two of them want the same run."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import storage.log.lease
from storage.errors import RunBusyError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.objects import layout
from storage.objects.local import LocalObjects
from storage.objects.objects import Objects


def act_elsewhere() -> None:
    """Open the next sessions of this process as one on another machine, which can be taken over while it lives."""
    describe = storage.log.lease.describe_process
    storage.log.lease.describe_process = lambda: describe() | {"host": "elsewhere.example"}  # type: ignore[assignment]


def race(root: str, races: int, barrier: Any, results: Any) -> None:
    """Tries to get each run at the same moment as the others, and holds it until all have tried."""
    store = Store.open(root)
    for number in range(races):
        run = store.run(f"race{number}")
        barrier.wait()
        try:
            with run.writer() as writer:
                entry = writer.commit(Key(1, "candidates"), [], {"pid": os.getpid()})
                barrier.wait()
            results.put((number, "won", os.getpid(), entry.number))
        except RuntimeError as error:
            barrier.wait()
            results.put((number, "busy", os.getpid(), str(error)))


def write_until_shut_out(root: str, races: int, barrier: Any, results: Any) -> None:
    """Commits to each run, shard after shard, until another writer has taken it over."""
    act_elsewhere()
    store = Store.open(root)
    for number in range(races):
        with store.run(f"race{number}").writer() as writer:
            shard = 0
            barrier.wait()
            try:
                while True:
                    writer.commit(Key(1, "candidates", shard), [], {"writer": "first"})
                    shard += 1
                    if shard % 1000 == 0:
                        time.sleep(0.1)  # on a busy machine, the other one would never be faster
            except RunBusyError as error:
                results.put((number, shard, str(error)))
        barrier.wait()


def pause_in_commit(root: str, results: Any) -> None:
    """Stops itself (SIGSTOP) right before it publishes an entry; revived, tries to go on in every way."""
    act_elsewhere()
    store = Store.open(root)
    with store.run("a").writer() as writer:
        writer.commit(Key(1, "candidates", 0), [], {"writer": "first"})
        pauses = layout.entry_key("a", 3)  # after the run, the session and the first commit
        for kind in (Objects, LocalObjects):
            kind.create = _pausing(kind.create, pauses)  # type: ignore[method-assign]
        attempts: list[Callable[[], object]] = [
            lambda: writer.commit(Key(1, "candidates", 1), [], {"writer": "first"}),
            lambda: writer.commit(Key(1, "candidates", 2), [], {"writer": "first"}),
            lambda: writer.finish_round(2, {"writer": "first"}),
        ]
        for attempt in attempts:
            try:
                attempt()
                results.put("wrote")
            except RunBusyError as error:
                results.put(str(error))


def _pausing(create: Callable[..., bool], at: str) -> Callable[..., bool]:
    def pausing(self: Objects, key: str, data: bytes) -> bool:
        if key == at:
            os.kill(os.getpid(), signal.SIGSTOP)
        return create(self, key, data)

    return pausing


def files_below(root: Path) -> dict[str, bytes]:
    """Every file with its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
