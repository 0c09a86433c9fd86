"""Files that a run has dropped: which bytes may go, and what a reader is told who comes too late.

A tombstone is published first and the bytes are removed afterwards. A fork names its parent's files, so the bytes of a
run's file stay as long as a fork of it, or a fork of that, names them.
"""

from collections.abc import Iterable, Mapping, Sequence

from storage.errors import STAGE_TITLES, CorruptEntryError, DroppedFileError, StoreError
from storage.log.log import Log
from storage.log.manifest import Entry, FileRef, decode_entry
from storage.objects import layout
from storage.objects.objects import Objects

NAMES_UNTIL = "names_until"
"""In the header of a fork: the last of its parent's rounds of which it will name files, if that is beyond its start."""
Parent = tuple[str, int]
"""Where a fork starts from: a run and one of its rounds."""


def parents(objects: Objects, but: str | None = None) -> dict[str, Parent | None]:
    """Returns every run under the root with what it was forked from; the run ``but`` is left out.

    Raises:
        CorruptEntryError: the first log entry of a run is damaged.
    """
    names = [name for name in objects.children(layout.RUNS) if layout.is_run_name(name) and name != but]
    names = [name for name in names if objects.size(layout.entry_key(name, 0)) is not None]
    found = objects.read_many([layout.entry_key(name, 0) for name in names])
    return {name: _parent(name, data) for name, data in zip(names, found, strict=True)}


def parent_of(header: Mapping[str, object]) -> Parent | None:
    """Reads from a header the run and round that its run was forked from; CorruptEntryError if they are no such."""
    parent = header.get("parent")
    if parent is None:
        return None
    try:
        name, number = parent["run"], parent["round"]  # type: ignore[index]
    except (TypeError, KeyError):
        name, number = None, None
    if not isinstance(name, str) or not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise CorruptEntryError(f"the header names a parent as {parent!r}: a run and a round are expected")
    return layout.check_run_name(name), number


def forks(known: Mapping[str, Parent | None], run: str) -> list[str]:
    """Lists the forks of a run, then their forks, and so on."""
    found: list[str] = []
    generation = {run}
    while generation:
        generation = {name for name, parent in known.items() if parent and parent[0] in generation} - {run, *found}
        found += sorted(generation)
    return found


def needed_by_forks(objects: Objects, run: str) -> set[str]:
    """Returns the paths that forks of the run name and have not dropped.

    A fork that has not begun needs all that its parent's rounds name up to the one that it starts from.
    """
    known = parents(objects)
    logs = {name: Log(objects, name) for name in forks(known, run)}
    needed = set()
    for name, log in logs.items():
        needed |= named(log)
        start = known[name]
        if start is not None and (last := borrowed(log, start)) is not None:
            needed |= named(logs.get(start[0]) or Log(objects, start[0]), last)
    return needed


def borrowed(fork: Log, start: Parent) -> int | None:
    """Returns the last of its parent's rounds whose files a fork needs without naming them; None if there is none.

    When it begins it imports the rounds up to its start, and names what it needs from then on. One that was given
    completions of later rounds does so for each of them at the latest when it has finished it (``NAMES_UNTIL``).
    """
    until = fork.header.meta.get(NAMES_UNTIL, 0)
    last = max(start[1], until if isinstance(until, int) else 0)
    return None if fork.finished and fork.finished[-1] >= last else last


def named(log: Log, last: int | None = None) -> set[str]:
    """Returns the paths that a run's log names in rounds up to ``last``, or in all, without those it has dropped."""
    commits = [entry for snapshot in log.snapshots() for entry in snapshot.commits] + list(log.pending.values())
    paths = {file.path for entry in commits if last is None or entry.round <= last for file in entry.files}
    return paths - log.dropped.keys()


def remove(objects: Objects, paths: Iterable[str]) -> None:
    """Removes files, and the directories of their own that this leaves empty; a missing file is no error."""
    keys = sorted(paths)
    objects.delete(keys)
    for directory in sorted({directory for key in keys if (directory := layout.unique_directory_of(key))}):
        objects.remove_empty(directory)


def why_missing(objects: Objects, files: Sequence[FileRef]) -> DroppedFileError | None:
    """Makes the error for a reader who misses one of these files, if it was removed on purpose; else None."""
    for run in sorted({name for file in files if (name := layout.run_of(file.path)) is not None}):
        try:
            log = Log(objects, run)
            dropped = log.dropped
        except StoreError:  # the log is damaged: whether the file was dropped is unknown
            continue
        for file in files:
            if file.path in dropped:
                return dropped_error(log, file.path, dropped)
    return None


def dropped_error(log: Log, path: str, dropped: Mapping[str, Entry]) -> DroppedFileError:
    """Makes the error that says what the file was, why it is gone, and which rounds still have theirs."""
    reason = dropped[path].meta.get("reason", "removed")
    commits = [entry for snapshot in log.snapshots() for entry in snapshot.commits] + list(log.pending.values())
    found = next((entry for entry in commits if any(file.path == path for file in entry.files)), None)
    if found is None or found.key is None:
        return DroppedFileError(f"{path} of run '{log.run}' was {reason}")
    stage = found.key.stage
    kept = {
        entry.round
        for entry in commits
        if entry.key is not None and entry.key.stage == stage and not any(f.path in dropped for f in entry.files)
    }
    what = STAGE_TITLES.get(stage, f"files of stage '{stage}'")
    there = ", ".join(map(str, sorted(kept))) or "none"
    return DroppedFileError(
        f"the {what} of round {found.round} of run '{log.run}' were {reason}; rounds whose {what} are there: {there}"
    )


def _parent(name: str, data: bytes) -> Parent | None:
    try:
        return parent_of(decode_entry(data).meta)
    except StoreError as error:
        raise CorruptEntryError(f"log entry 0 of run '{name}' is damaged: {error}") from error
