"""Finished rounds, each folded into one object, so that a run of a thousand rounds opens quickly."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

from storage.errors import CorruptEntryError
from storage.log.manifest import (
    Entry,
    canonical,
    digest_of,
    entry_from_json,
    entry_to_json,
    is_count,
    seal,
    unseal,
)

FORMAT = 2


class PackedEntries(Sequence[Entry]):
    """Entries as they lie in a snapshot: checked against their digest when read, decoded when first asked for.

    A list of the rounds of a long run needs none of them, and there are many more of them than rounds.

    Raises:
        CorruptEntryError: when first asked for, if they match their digest but are no commits.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data

    @cached_property
    def _entries(self) -> tuple[Entry, ...]:
        try:
            values = json.loads(self._data.tobytes())
        except (ValueError, RecursionError) as error:
            raise CorruptEntryError(f"the entries of the snapshot are no intact JSON: {error}") from error
        if not isinstance(values, list):
            raise CorruptEntryError("the entries of the snapshot are no list")
        entries = tuple(map(entry_from_json, values))
        if any(entry.kind != "commit" for entry in entries):
            raise CorruptEntryError("the snapshot holds entries of another kind than it must")
        return entries

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._entries == tuple(other)

    def __hash__(self) -> int:
        return hash(self._data)


@dataclass(frozen=True)
class Snapshot:
    """A finished round, folded into one object. Derived: the log is what counts.

    Attributes:
        entry: its "round" entry, the last entry that the snapshot covers.
        rank: how many rounds were finished before; it shows if an earlier snapshot is gone.
        head: SHA-256 of the bytes of that entry.
        session: the "session" entry of the writer that finished it.
        commits: the commits of the round, in log order.
        pending: the commits before ``entry`` of rounds that were not finished then, in log order.
        tombstones: the numbers of all "release" entries before ``entry``, ascending.
    """

    entry: Entry
    rank: int
    head: str
    session: Entry
    commits: Sequence[Entry]
    pending: Sequence[Entry]
    tombstones: tuple[int, ...] = ()


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Writes a snapshot as bytes: a line for the round, which vouches for a line of commits and one of pending ones."""
    lines = [_pack(snapshot.commits), _pack(snapshot.pending)]
    head = seal(
        {
            "format": FORMAT,
            "entry": entry_to_json(snapshot.entry),
            "rank": snapshot.rank,
            "head": snapshot.head,
            "session": entry_to_json(snapshot.session),
            "releases": list(snapshot.tombstones),
            "lines": [digest_of(line) for line in lines],
        },
        what=f"the snapshot of round {snapshot.entry.round}",
    )
    return b"\n".join([head, *lines])


def decode_snapshot(data: bytes) -> Snapshot:
    """Reads the snapshot that :func:`encode_snapshot` wrote; CorruptEntryError if it is none, or of another format.

    Every byte is checked here. The commits are decoded when they are asked for.
    """
    first, *lines = _lines(memoryview(data), data)
    value = unseal(first.tobytes())
    if set(value) != {"format", "entry", "rank", "head", "session", "releases", "lines"} or value["format"] != FORMAT:
        raise CorruptEntryError(f"the object is no snapshot of format {FORMAT}")
    if len(lines) != 2 or [digest_of(line) for line in lines] != value["lines"]:
        raise CorruptEntryError("the entries of the snapshot do not match their digests")
    entry, session = entry_from_json(value["entry"]), entry_from_json(value["session"])
    tombstones = value["releases"]
    typed = is_count(value["rank"]) and isinstance(tombstones, list) and all(map(is_count, tombstones))
    if not typed or entry.kind != "round" or session.kind != "session" or entry.number <= max(tombstones, default=-1):
        raise CorruptEntryError("the snapshot holds entries of another kind than it must")
    commits, pending = map(PackedEntries, lines)
    return Snapshot(entry, value["rank"], str(value["head"]), session, commits, pending, tuple(tombstones))


def _lines(view: memoryview, data: bytes) -> Iterator[memoryview]:
    """Yields the lines of the data, without a copy: the snapshots of a long run are many megabytes."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield view[start:end]
        start = end + 1
    yield view[start:]


def _pack(entries: Iterable[Entry]) -> bytes:
    return canonical([entry_to_json(entry) for entry in entries])
