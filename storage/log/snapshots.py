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
    """Entries as they lie in a summary: checked against their digest when read, decoded when first asked for.

    Whoever lists the rounds of a long run needs none of them, and there are many more of them than rounds.

    Raises:
        CorruptEntryError: when first asked for, where they match their digest and are no commits all the same.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data

    @cached_property
    def _entries(self) -> tuple[Entry, ...]:
        try:
            values = json.loads(self._data.tobytes())
        except (ValueError, RecursionError) as error:
            raise CorruptEntryError(f"the entries of the summary are no intact JSON: {error}") from error
        if not isinstance(values, list):
            raise CorruptEntryError("the entries of the summary are no list")
        entries = tuple(map(entry_from_json, values))
        if any(entry.kind != "commit" for entry in entries):
            raise CorruptEntryError("the summary holds entries of another kind than it must")
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
class Summary:
    """A finished round, folded into one object. Derived: the log is what counts.

    Attributes:
        entry: its "round" entry, the last entry that the summary covers.
        rank: how many rounds were finished before; a summary that is gone shows by it.
        head: SHA-256 of the bytes of that entry.
        session: the "session" entry of the writer that finished it.
        commits: the commits of the round, in log order.
        pending: the commits before ``entry`` of rounds that were not finished then, in log order.
        releases: the numbers of all "release" entries before ``entry``, ascending.
    """

    entry: Entry
    rank: int
    head: str
    session: Entry
    commits: Sequence[Entry]
    pending: Sequence[Entry]
    releases: tuple[int, ...] = ()


def encode_summary(summary: Summary) -> bytes:
    """The bytes of a summary: a line for the round, that vouches for one line of commits and one of pending ones."""
    lines = [_pack(summary.commits), _pack(summary.pending)]
    head = seal(
        {
            "format": FORMAT,
            "entry": entry_to_json(summary.entry),
            "rank": summary.rank,
            "head": summary.head,
            "session": entry_to_json(summary.session),
            "releases": list(summary.releases),
            "lines": [digest_of(line) for line in lines],
        },
        what=f"the summary of round {summary.entry.round}",
    )
    return b"\n".join([head, *lines])


def decode_summary(data: bytes) -> Summary:
    """The summary that :func:`encode_summary` wrote; CorruptEntryError where it is none, or is of an older format.

    Every byte is checked here. The commits are decoded when they are asked for.
    """
    first, *lines = _lines(memoryview(data), data)
    value = unseal(first.tobytes())
    if set(value) != {"format", "entry", "rank", "head", "session", "releases", "lines"} or value["format"] != FORMAT:
        raise CorruptEntryError(f"the object is no summary of format {FORMAT}")
    if len(lines) != 2 or [digest_of(line) for line in lines] != value["lines"]:
        raise CorruptEntryError("the entries of the summary do not match their digests")
    entry, session = entry_from_json(value["entry"]), entry_from_json(value["session"])
    releases = value["releases"]
    typed = is_count(value["rank"]) and isinstance(releases, list) and all(map(is_count, releases))
    if not typed or entry.kind != "round" or session.kind != "session" or entry.number <= max(releases, default=-1):
        raise CorruptEntryError("the summary holds entries of another kind than it must")
    commits, pending = map(PackedEntries, lines)
    return Summary(entry, value["rank"], str(value["head"]), session, commits, pending, tuple(releases))


def _lines(view: memoryview, data: bytes) -> Iterator[memoryview]:
    """The lines of the data, without a copy: the summaries of a long run are many megabytes."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield view[start:end]
        start = end + 1
    yield view[start:]


def _pack(entries: Iterable[Entry]) -> bytes:
    return canonical([entry_to_json(entry) for entry in entries])
