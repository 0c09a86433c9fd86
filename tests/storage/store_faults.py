"""Faults for the tests of the store: a wrapper around real objects that dies, fails or loses a reply at one write.

Also the small run that those tests interrupt, in a module that child processes can import.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from flows.analysis.pruning import prune_to
from storage.errors import BackendError
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.objects.objects import Listed, Objects, Sink
from storage.tables.checkpoints import local_directory, stage_directory
from storage.tables.shards import read_table, write_table


class Crash(BaseException):
    """The process is gone: nothing after it may write."""


class FaultyObjects(Objects):
    """Real objects whose write number ``at`` (from 0) meets a fault.

    ``before`` and ``after`` say whether the write took place. A crashed wrapper crashes at every later operation too;
    a failed one goes on.
    """

    def __init__(self, real: Objects, at: int, when: str, fault: Callable[[], None]) -> None:
        self.real, self.at, self.when, self.fault = real, at, when, fault
        self.writes = 0
        self.dead = False

    @contextmanager
    def _write(self) -> Iterator[None]:
        self._alive()
        hit = self.writes == self.at
        self.writes += 1
        if hit and self.when == "before":
            self._strike()
        yield
        if hit and self.when == "after":
            self._strike()

    def _strike(self) -> None:
        try:
            self.fault()
        except Crash:
            self.dead = True
            raise

    def _alive(self) -> None:
        if self.dead:
            raise Crash

    def create(self, key: str, data: bytes) -> bool:
        with self._write():
            return self.real.create(key, data)

    @contextmanager
    def sink(self, key: str, source: Path | None = None) -> Iterator[Sink]:
        with self._write(), self.real.sink(key, source) as sink:
            yield sink

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:  # a process can die between two of them
            with self._write():
                self.real.delete([key])

    def remove_empty(self, prefix: str) -> None:
        self.real.remove_empty(prefix)

    def listing(self, prefix: str) -> list[Listed]:
        self._alive()
        return self.real.listing(prefix)

    def read(self, key: str) -> bytes:
        self._alive()
        return self.real.read(key)

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        self._alive()
        return self.real.read_many(keys)

    def open(self, key: str) -> BinaryIO:
        return self.real.open(key)

    def local_path(self, key: str) -> Path | None:
        return self.real.local_path(key)

    def size(self, key: str) -> int | None:
        return self.real.size(key)

    def keys(self, prefix: str, after: str | None = None) -> list[str]:
        self._alive()
        return self.real.keys(prefix, after)

    def written(self, key: str) -> datetime:
        return self.real.written(key)

    def children(self, prefix: str) -> list[str]:
        return self.real.children(prefix)


def crash() -> None:
    raise Crash


def fail() -> None:
    raise BackendError("the backend failed, as the test wants it")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def faulty(store: Store, at: int = -1, when: str = "before", fault: Callable[[], None] = crash) -> Store:
    """The same store, with a fault at one of its writes (none at -1)."""
    return Store(store.root, FaultyObjects(store.objects, at, when, fault), store.local_root)


def small_run(store: Store, name: str = "small") -> Run:
    """Two rounds of two shards and a directory, doing only what is not committed yet."""
    run = store.run(name) if name in store.run_names() else store.create_run(name, {"recipe": "small"})
    with run.writer() as writer:
        for number in (1, 2):
            for shard in (0, 1):
                key = Key(number, "candidates", shard, inputs="abc")
                if run.find(key) is None:
                    table = pa.table({"prompt_id": [f"p{shard}"], "score": [number / 2]})
                    writer.commit(key, [write_table(store, name, number, "candidates", table, shard)])
            key = Key(number, "checkpoint")
            if run.find(key) is None:
                with stage_directory(store, name, number, "checkpoint") as staged:
                    (staged.path / "model.safetensors").write_bytes(bytes([number]) * 10)
                    (staged.path / "sub").mkdir()
                    (staged.path / "sub" / "config.json").write_text("{}")
                writer.commit(key, staged.files, {"steps": number})
            writer.finish_round(number, {"loss": number / 4})
    return run


def contents(store: Store, cache: Path, name: str = "small") -> list[object]:
    """Everything that a reader of the small run sees, read anew and verified."""
    run = store.run(name)
    seen: list[object] = [run.header, run.state]
    for entry in run.rounds():
        directory = local_directory(store, run.files(entry.round, "checkpoint"), cache)
        seen.append(
            (
                entry.round,
                entry.meta,
                read_table(store, run.files(entry.round, "candidates")).to_pylist(),
                {path.name: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()},
                [(item.key, item.meta) for item in run.entries(entry.round)],
            )
        )
    return seen


def killed_run(root: str, at: int, when: str) -> None:
    """For a child process: the small run, killed at one write."""
    small_run(faulty(Store.open(root), at, when, kill))


def killed_prune(root: str, at: int) -> None:
    """For a child process: prunes the run "kept", and is killed before one of its writes."""
    store = faulty(Store.open(root), at, "before", kill)
    prune_to(store, store.run("kept"), ())


def hold(root: str, name: str, barrier: object) -> None:
    """For a child process: has the run open for writing between two meetings at the barrier."""
    with Store.open(root).run(name).writer():
        barrier.wait()  # type: ignore[attr-defined]
        barrier.wait()  # type: ignore[attr-defined]
