"""Kills a run, SIGKILL, at each of its write operations in turn, in whichever of its processes the operation is.

A process that is armed names every write operation that it comes to, and strikes at the first one that the file
``covered`` does not name yet, after it has added its name there. So one run, resumed after each kill, is killed at
every operation once, whatever order its processes come to them in; and the names say which operations there were.

Operations are ``entry ...`` (anything published by put-if-absent: log entries, summaries, the manifest of a shared
directory), ``table ...`` (a Parquet file), ``file ...`` (a file of a staged directory) ``delete ...`` (files given up
on purpose) and ``report.html``. A kill takes the flow's process and its workers, or, with ``alone``, the worker alone,
so that the flow goes on. The kinds of kill, at any of these operations unless stated otherwise:

    before   nothing of it has been written
    torn     half of its bytes are written: of the temporary file, of the table, of one file of a directory of which
             the following ones are missing; half of the files to be deleted are
    linked   entries only: the entry is published, its temporary file is still there, its directory is not synced
    after    it has been written; of a directory, the following files are missing
    none     no kill: the operations are only named
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.log.manifest import decode_entry
from storage.objects.local import LocalObjects
from storage.objects.objects import Objects, Sink
from storage.tables import checkpoints

KINDS = ("before", "torn", "linked", "after")
_UNIQUE = re.compile(r"[-/][0-9a-f]{16,64}(?=[./]|$)")


def settings(covered: Path, kind: str, *, only: Sequence[str] = (), alone: bool = False) -> dict[str, str]:
    """The variables of a command whose processes are to be armed; ``only`` these operations where they are given."""
    return {"RONDO_CHAOS": json.dumps({"covered": str(covered), "kind": kind, "only": only, "alone": alone})}


def arm(text: str) -> None:
    """Wraps every way in which this process writes to a store."""
    plan = json.loads(text)
    # Workers are killed together with the flow, whose process was armed first.
    flow = int(os.environ.setdefault("RONDO_CHAOS_FLOW", str(os.getpid())))
    if plan["alone"]:
        if flow == os.getpid():
            return
        flow = os.getpid()
    striker = _Striker(Path(plan["covered"]), plan["kind"], plan["only"], flow)
    for objects in (Objects, LocalObjects):
        objects.create = _create(objects.create, striker)  # type: ignore[method-assign]
        objects.sink = _sink(objects.sink, striker)  # type: ignore[method-assign]
        objects.delete = _delete(objects.delete, striker)  # type: ignore[method-assign]
    checkpoints._names = _names(checkpoints._names, striker)
    os.fsync = _fsync(os.fsync, striker)
    os.link = _link(os.link, striker)
    os.replace = _replace(os.replace, striker)


class _Striker:
    def __init__(self, covered: Path, kind: str, only: Sequence[str], flow: int) -> None:
        self._covered, self.kind, self._only, self._flow = covered, kind, only, flow
        self._seen = set(covered.read_text().splitlines()) if covered.exists() else set()
        self._created: set[str] = set()
        self.entry: str | None = None  # the entry that is being published, if it is to be hit

    def wants(self, name: str, kinds: tuple[str, ...] = ("before", "torn", "after")) -> bool:
        """Whether this operation is to be hit; notes its name."""
        if name in self._seen or self.kind not in (*kinds, "none") or (self._only and name not in self._only):
            return False
        self._seen.add(name)
        with self._covered.open("a") as covered:
            covered.write(f"{name}\n")
        return self.kind != "none"

    def strike(self) -> None:
        os.kill(self._flow, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def name_of(self, key: str, data: bytes) -> str:
        name = _plain(key)
        if re.search(r"/log/\d+\.json$", key):
            entry = decode_entry(data)
            shard = entry.key and entry.key.shard
            what = f"{entry.key.round}/{entry.key.stage}" if entry.key else ""
            name = f"{entry.kind} {what}{'' if shard is None else f' {shard}'}".strip()
        elif "/summaries/" in key:
            name = f"summary {int(key.rpartition('/')[2][:6])}"
        # To create the same object again is how a writer sees that the backend does not overwrite.
        again = " again" if key in self._created else ""
        self._created.add(key)
        return f"entry {name}{again}"


def _plain(key: str) -> str:
    """The key without what makes it unique, and without the name of the run."""
    return re.sub(r"^(shared|(runs/)?[^/]*/rounds|runs/[^/]*)/", "", _UNIQUE.sub("", key))


def _create(real: Callable[..., bool], striker: _Striker) -> Callable[..., bool]:
    def create(self: Objects, key: str, data: bytes) -> bool:
        hit = striker.wants(striker.name_of(key, data), KINDS)
        if hit and striker.kind == "before":
            striker.strike()
        striker.entry = key if hit else None
        done = real(self, key, data)
        if hit:  # also where there was nothing to tear or to link
            striker.strike()
        return done

    return create


def _sink(real: Callable[..., Any], striker: _Striker) -> Callable[..., Any]:
    @contextmanager
    def sink(self: Objects, key: str, source: Path | None = None) -> Iterator[Sink]:
        kind = "table " if key.endswith(".parquet") else "" if key.endswith("report.html") else "file "
        hit = striker.wants(kind + _plain(key))
        if hit and striker.kind == "before":
            striker.strike()
        with real(self, key, source) as opened:
            yield opened
            if hit and striker.kind == "torn":
                path = self.local_path(key)
                if path is not None:
                    opened._raw.flush()
                    os.truncate(path, path.stat().st_size // 2)
                striker.strike()
        if hit:
            striker.strike()

    return sink


def _delete(real: Callable[..., None], striker: _Striker) -> Callable[..., None]:
    def delete(self: Objects, keys: Sequence[str]) -> None:
        hit = striker.wants(f"delete {_plain(keys[0])} and {len(keys) - 1} more") if keys else False
        if hit and striker.kind != "before":
            real(self, keys if striker.kind == "after" else keys[: len(keys) // 2])
        if hit:
            striker.strike()
        real(self, keys)

    return delete


def _names(real: Callable[[Path], list[str]], striker: _Striker) -> Callable[[Path], list[str]]:
    """A staged directory, whose files were written by libraries: brought to the state that the kill would have left."""

    def names(directory: Path) -> list[str]:
        found = real(directory)
        if directory.name.startswith("rondo-"):  # to be uploaded, file by file
            return found
        written = sorted(found, key=lambda name: (directory / name).stat().st_mtime_ns)
        for index, name in enumerate(written):
            parent = _plain(directory.as_posix().rpartition("/shared/" if "shared" in directory.parts else "/runs/")[2])
            if striker.wants(f"file {parent}/{name}"):
                for later in written[index + (striker.kind != "before") :]:
                    if later != name or striker.kind == "before":
                        (directory / later).unlink()
                if striker.kind == "torn":
                    os.truncate(directory / name, (directory / name).stat().st_size // 2)
                striker.strike()
        return found

    return names


def _fsync(real: Callable[[int], None], striker: _Striker) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        staged = striker.entry is not None and "#" in os.readlink(f"/proc/self/fd/{descriptor}")
        if staged and striker.kind == "torn":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            striker.strike()
        real(descriptor)

    return fsync


def _link(real: Callable[..., None], striker: _Striker) -> Callable[..., None]:
    def link(source: Any, target: Any) -> None:
        real(source, target)
        if striker.entry is not None and striker.kind == "linked":
            striker.strike()

    return link


def _replace(real: Callable[..., None], striker: _Striker) -> Callable[..., None]:
    def replace(source: Any, target: Any) -> None:
        hit = str(target).endswith("report.html") and striker.wants("report.html")
        if hit and striker.kind == "torn":
            os.truncate(source, os.stat(source).st_size // 2)
        if hit and striker.kind != "after":
            striker.strike()
        real(source, target)
        if hit:
            striker.strike()

    return replace
