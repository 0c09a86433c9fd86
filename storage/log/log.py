"""The log of one run, as far as it was read: entries applied in order, finished rounds folded into snapshots.

A snapshot is derived from the log: one that is damaged, or of an older format, is built again. The snapshot of round r
holds that round's entries and those of rounds that were not finished then. So the newest snapshot and the entries after
it are the whole state, and an older round costs the reading of one more object.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from storage.errors import CorruptEntryError, MissingObjectError
from storage.log.manifest import Entry, Key, decode_entry, digest_of
from storage.log.snapshots import Snapshot, decode_snapshot, encode_snapshot
from storage.objects import layout
from storage.objects.objects import Objects


@dataclass
class _State:
    """What the entries up to ``head`` add up to."""

    head: Entry
    digest: str
    session: Entry | None = None
    close: Entry | None = None
    rounds: int = 0
    pending: dict[Key, Entry] = field(default_factory=dict)
    newest: dict[Key, Entry] = field(default_factory=dict)
    tombstones: list[int] = field(default_factory=list)

    @staticmethod
    def after(snapshot: Snapshot) -> "_State":
        state = _State(snapshot.entry, snapshot.head, snapshot.session, None, snapshot.rank + 1)
        for item in snapshot.pending:
            state._add(item)
        state.tombstones += snapshot.tombstones
        return state

    def apply(self, entry: Entry, digest: str) -> Snapshot | None:
        """Moves on by one entry; returns the snapshot of the round that it finishes, if it does."""
        if entry.parent != self.digest:
            raise CorruptEntryError(
                f"log entry {entry.number} does not follow from entry {self.head.number}: one of the two is damaged"
            )
        self.head, self.digest = entry, digest
        if entry.kind == "session":
            self.session, self.close = entry, None
        elif entry.kind == "close":
            self.close = entry
        elif entry.kind == "commit":
            self._add(entry)
        elif entry.kind == "release":
            self.tombstones.append(entry.number)
        elif entry.kind == "round":
            return self._fold(entry)
        return None

    def _add(self, commit: Entry) -> None:
        if commit.key is not None:
            piece = commit.key.piece
            # A stage that is one piece takes the place of its shards, and they of it: see Run.files.
            self.pending[commit.key] = self.newest[piece] = self.newest[replace(piece, shard=None)] = commit

    def _fold(self, entry: Entry) -> Snapshot:
        if self.session is None:
            raise CorruptEntryError(f"log entry {entry.number} finishes a round outside any session")
        commits = tuple(item for item in self.pending.values() if item.round == entry.round)
        self.pending = {key: item for key, item in self.pending.items() if key.round != entry.round}
        self.newest = {key: item for key, item in self.newest.items() if key.round != entry.round}
        self.rounds += 1
        pending = tuple(self.pending.values())
        return Snapshot(entry, self.rounds - 1, self.digest, self.session, commits, pending, tuple(self.tombstones))


def replay(entries: Iterable[tuple[Entry, str]]) -> Iterator[Snapshot]:
    """Yields the snapshots that the entries of a whole log, each with the digest of its bytes, add up to.

    Raises:
        CorruptEntryError: an entry does not follow from the one before.
    """
    rest = iter(entries)
    state = _State(*next(rest))
    for entry, digest in rest:
        snapshot = state.apply(entry, digest)
        if snapshot is not None:
            yield snapshot


class Log:
    """What is known of a run's log. Safe to use from several threads.

    Args:
        intact_part: read as far as the log is intact, and stop there without an error.

    Raises:
        MissingObjectError: the run has no entry 0.
        CorruptEntryError: an entry is damaged or missing.
    """

    def __init__(self, objects: Objects, run: str, *, intact_part: bool = False) -> None:
        self.lock = threading.RLock()
        self.run = run
        self._objects = objects
        self._snapshots: dict[int, Snapshot] = {}
        self._damaged: set[int] = set()
        self._tombstones: dict[int, Entry] = {}
        self._intact_part = intact_part
        first = objects.read(layout.entry_key(run, 0))
        self.header = self._decode(0, first)
        self._start = _State(self.header, digest_of(first))
        found = map(layout.snapshot_numbers, objects.keys(layout.snapshots_prefix(run)))
        self._listed = dict(sorted(numbers for numbers in found if numbers is not None))
        self._state = self._newest_state()
        if intact_part:
            self._refresh_intact()
        else:
            self.refresh()

    @property
    def head(self) -> Entry:
        """Returns the newest entry."""
        return self._state.head

    @property
    def head_digest(self) -> str:
        """Returns the SHA-256 of the newest entry's bytes."""
        return self._state.digest

    @property
    def session(self) -> Entry | None:
        """Returns the newest "session" entry."""
        return self._state.session

    @property
    def session_closed(self) -> bool:
        """Says whether the newest session has its closing entry."""
        return self._state.close is not None

    @property
    def closed_by(self) -> str | None:
        """Returns the name of the error that the newest session was closed by; None if by none, or if it is open."""
        last = self._state.close
        error: str | None = last.meta.get("error") if last is not None else None
        return error

    @property
    def pause(self) -> dict[str, Any] | None:
        """Returns what the newest session says of a pause: in its closing entry, or else in its first."""
        last = self._state.close or self._state.session
        found: dict[str, Any] | None = last.meta.get("paused") if last is not None else None
        return found

    @property
    def finished(self) -> list[int]:
        """Lists the rounds that are finished, ascending."""
        with self.lock:
            return sorted(self._listed.keys() | self._snapshots.keys())

    @property
    def pending(self) -> dict[Key, Entry]:
        """Returns the commits of rounds that are not finished, in log order."""
        with self.lock:
            return dict(self._state.pending)

    def pending_commit(self, key: Key) -> Entry | None:
        """Finds the commit with exactly this key, of a round that is not finished, without a search."""
        with self.lock:
            return self._state.pending.get(key)

    def find(self, key: Key) -> Entry | None:
        """Returns the commit with exactly this key."""
        if key.round not in self.finished:
            return self.pending_commit(key)
        return next((entry for entry in self.snapshot(key.round).commits if entry.key == key), None)

    def newest_commit(self, key: Key) -> Entry | None:
        """Finds the newest commit of this piece of work, whatever its inputs, in a round that is not finished.

        If the piece is a whole stage, that may be a shard of it.
        """
        with self.lock:
            return self._state.newest.get(key.piece)

    @property
    def dropped(self) -> dict[str, Entry]:
        """Returns the tombstone of each file that the run has dropped, by path; read when first asked for."""
        with self.lock:
            missing = [number for number in self._state.tombstones if number not in self._tombstones]
            for some in [[number] for number in missing] if self._intact_part else [missing]:
                try:
                    found = self._objects.read_many([layout.entry_key(self.run, number) for number in some])
                    decoded = [self._decode(number, data) for number, data in zip(some, found, strict=True)]
                except (CorruptEntryError, MissingObjectError) as error:
                    if self._intact_part:
                        continue
                    raise CorruptEntryError(f"a tombstone of run '{self.run}' cannot be read: {error}") from error
                self._tombstones |= dict(zip(some, decoded, strict=True))
            return {file.path: entry for _, entry in sorted(self._tombstones.items()) for file in entry.files}

    def refresh(self) -> None:
        """Reads what was appended since."""
        with self.lock:
            numbers = self._newer()
            if numbers:
                # By number, not by listing: a listing may miss an entry that was written while it ran.
                self._advance(self._state, max(numbers))

    def append(self, entry: Entry, data: bytes) -> None:
        """Applies the entry after the head, whose bytes are ``data``."""
        with self.lock:
            snapshot = self._state.apply(entry, digest_of(data))
            if snapshot is not None:
                self._snapshots[entry.round] = snapshot

    def _newer(self) -> list[int]:
        after = layout.entry_key(self.run, self.head.number)
        listed = self._objects.keys(layout.log_prefix(self.run), after=after)
        return [number for number in map(layout.entry_number, listed) if number is not None]

    def _refresh_intact(self) -> None:
        numbers = set(self._newer())
        with suppress(CorruptEntryError):
            while self.head.number + 1 in numbers:
                self._advance(self._state, self.head.number + 1)

    def snapshot(self, round_number: int) -> Snapshot:
        """Returns the snapshot of a finished round, read if it was not yet; built from the log if it cannot be."""
        with self.lock:
            if round_number not in self._snapshots:
                try:
                    self._snapshots[round_number] = self._read_snapshot(round_number)
                except (CorruptEntryError, MissingObjectError):
                    self._advance(self._state_before(round_number), self._listed[round_number])
                    self._damaged.add(round_number)
            return self._snapshots[round_number]

    def snapshots(self) -> list[Snapshot]:
        """Returns the snapshots of all finished rounds, ascending; those not read yet are read together."""
        with self.lock:
            missing = [number for number in self.finished if number not in self._snapshots]
            keys = [layout.snapshot_key(self.run, number, self._listed[number]) for number in missing]
            with suppress(MissingObjectError):  # snapshot() builds it from the log
                for number, data in zip(missing, self._objects.read_many(keys), strict=True):
                    with suppress(CorruptEntryError):
                        self._snapshots[number] = self._decode_snapshot(number, data)
            return [self.snapshot(number) for number in self.finished]

    def write_snapshots(self) -> None:
        """Writes the snapshots that are missing or damaged; only a writer does."""
        with self.lock:
            for number in [number for number in self.finished if number not in self._listed or number in self._damaged]:
                snapshot = self._snapshots[number]
                key, data = layout.snapshot_key(self.run, number, snapshot.entry.number), encode_snapshot(snapshot)
                if not self._objects.create(key, data) and self._objects.read(key) != data:
                    self._objects.delete([key])
                    self._objects.create(key, data)
                self._listed[number] = snapshot.entry.number
                self._damaged.discard(number)

    def _newest_state(self) -> _State:
        """Returns the state at the newest readable snapshot; newer ones are forgotten, to be built from the log."""
        for number in reversed(self.finished):
            try:
                self._snapshots[number] = self._read_snapshot(number)
            except (CorruptEntryError, MissingObjectError):
                del self._listed[number]
            else:
                return _State.after(self._snapshots[number])
        return _State(self._start.head, self._start.digest)

    def _state_before(self, round_number: int) -> _State:
        for number in reversed([number for number in self.finished if number < round_number]):
            with suppress(CorruptEntryError, MissingObjectError):
                return _State.after(self._snapshots.get(number) or self._read_snapshot(number))
        return _State(self._start.head, self._start.digest)

    def _advance(self, state: _State, last: int) -> None:
        """Applies the entries up to number ``last``, and keeps the snapshots of the rounds that they finish."""
        numbers = range(state.head.number + 1, last + 1)
        try:
            found = self._objects.read_many([layout.entry_key(self.run, number) for number in numbers])
        except MissingObjectError as error:
            raise CorruptEntryError(
                f"the log of run '{self.run}' has a gap: {error}, though later entries are"
            ) from error
        for number, data in zip(numbers, found, strict=True):
            entry = self._decode(number, data)
            snapshot = state.apply(entry, digest_of(data))
            if snapshot is not None:
                self._snapshots[entry.round] = snapshot

    def _decode(self, number: int, data: bytes) -> Entry:
        try:
            entry = decode_entry(data)
            if entry.number != number or (entry.kind == "run") != (number == 0):
                raise CorruptEntryError(f"it is entry {entry.number} of kind '{entry.kind}'")
        except CorruptEntryError as error:
            raise CorruptEntryError(f"log entry {number} of run '{self.run}' is damaged: {error}") from error
        return entry

    def _read_snapshot(self, round_number: int) -> Snapshot:
        key = layout.snapshot_key(self.run, round_number, self._listed[round_number])
        return self._decode_snapshot(round_number, self._objects.read(key))

    def _decode_snapshot(self, round_number: int, data: bytes) -> Snapshot:
        snapshot = decode_snapshot(data)
        rank = bisect_left(sorted(self._listed), round_number)
        expected = (round_number, self._listed[round_number], rank)
        if (snapshot.entry.round, snapshot.entry.number, snapshot.rank) != expected:
            raise CorruptEntryError(f"the snapshots of run '{self.run}' up to round {round_number} are not complete")
        return snapshot
