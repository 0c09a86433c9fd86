"""A run: what its log names. Its one writer is in ``writer.py``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from storage.errors import (
    MissingObjectError,
    RunNotFoundError,
    StoreError,
)
from storage.log import lease, tombstones
from storage.log.log import Log
from storage.log.manifest import Entry, FileRef, Key, decode_entry, key_of
from storage.log.writer import Writer
from storage.objects import layout
from storage.objects.objects import Objects


class Run:
    """A run as the log tells it. What no entry names does not exist here.

    Args:
        intact_part: read a damaged log as far as it is intact; nothing can be written to such a run.

    Attributes:
        name: the name of the run.
        header: what :meth:`storage.log.store.Store.create_run` was given.
        created: when that was, UTC, ISO 8601.
        identity: what no other run has, also one of the same name under the same root in another place.
    """

    def __init__(self, objects: Objects, name: str, *, intact_part: bool = False) -> None:
        self._objects = objects
        self.name = name
        try:
            self._log = Log(objects, name, intact_part=intact_part)
        except MissingObjectError as error:
            raise RunNotFoundError(f"there is no run '{name}'") from error
        self.header: dict[str, Any] = self._log.header.meta
        self.created = self._log.header.time
        self.identity = self._log.header.session

    @property
    def annexes(self) -> list[str]:
        """Lists the names of the run's annexes, sorted; see :meth:`annex`."""
        names = filter(layout.is_run_name, self._objects.children(layout.annexes_prefix(self.name)))
        return [name for name in names if self._objects.size(self._first(name)) is not None]

    def annex(self, name: str) -> "Run":
        """Opens an annex: a log beside the run's, with a writer and files of its own, that the run does not know of.

        It goes with the run when that is deleted. It finishes no rounds: its commits stay open to more of them.

        Raises:
            RunNotFoundError: there is none of this name.
        """
        try:
            return Run(self._objects, layout.annex_of(self.name, name))
        except RunNotFoundError:
            there = f": there are {', '.join(known)}" if (known := self.annexes) else ": there are none"
            raise RunNotFoundError(f"run '{self.name}' has nothing beside it of the name '{name}'{there}") from None

    def refresh(self) -> None:
        """Reads what was committed since."""
        self._log.refresh()

    @property
    def head(self) -> int:
        """Returns the number of the newest entry, of whatever kind: it grows with each change of the run."""
        return self._log.head.number

    def is_current(self) -> bool:
        """Says whether the run is still there: it may have been deleted, and another made under its name.

        Raises:
            CorruptEntryError: its first entry is damaged by now.
        """
        try:
            first = decode_entry(self._objects.read(layout.entry_key(self.name, 0)))
        except MissingObjectError:
            return False
        return first.session == self.identity

    @property
    def state(self) -> Literal["running", "stopped"]:
        """Says whether a writer has the run open; a writer on another host counts as running until it closes."""
        last = self._log.session
        held = last is not None and not self._log.session_closed and lease.holder(last) != "dead"
        return "running" if held else "stopped"

    @property
    def died(self) -> bool:
        """Says whether the last writer is gone without having closed the run, as one that was killed."""
        last = self._log.session
        return last is not None and not self._log.session_closed and lease.holder(last) == "dead"

    @property
    def closed_by(self) -> str | None:
        """Returns the name of the error that ended the last writer; None if it ended well, or has not ended."""
        return self._log.closed_by

    @property
    def pause(self) -> dict[str, Any] | None:
        """Says who holds the run back, and since when, if it was paused; None if it may go on."""
        return self._log.pause

    @property
    def session(self) -> Entry | None:
        """Returns the newest "session" entry: whoever has the run open, or had it last."""
        return self._log.session

    def written(self, entry: Entry) -> datetime:
        """Says when an entry was written, by the store's clock; the time in it is by its writer's."""
        return self._objects.written(layout.entry_key(self.name, entry.number))

    @property
    def dropped(self) -> dict[str, Entry]:
        """Returns the files that the run has given up, by path, each with the tombstone that says why."""
        return self._log.dropped

    def check_kept(self, files: Sequence[FileRef]) -> None:
        """Raises DroppedFileError if the run has given one of these files up, even if its bytes are still there."""
        dropped = self._log.dropped
        gone = next((file.path for file in files if file.path in dropped), None)
        if gone is not None:
            raise tombstones.dropped_error(self._log, gone, dropped)

    def find(self, key: Key) -> Entry | None:
        """Returns the commit with exactly this key; None if there is none."""
        return self._log.find(key)

    def entries(self, round: int | None = None, stage: str | None = None) -> list[Entry]:
        """Returns the commits of a round, or of all, in log order; the shards of one stage stand together, by index."""
        chosen = self._all_commits() if round is None else self._commits(round)
        if stage is not None:
            chosen = [entry for entry in chosen if entry.key is not None and entry.key.stage == stage]
        first: dict[tuple[int, str, bool], int] = {}
        for entry in chosen:
            first.setdefault(_piece(entry), entry.number)
        return sorted(chosen, key=lambda entry: (first[_piece(entry)], _shard(entry), entry.number))

    def work(self, round: int, stage: str | None = None) -> list[Entry]:
        """Returns the commits as :meth:`entries` has them, but for those that make an earlier one the newest again."""
        return [entry for entry in self.entries(round, stage) if not key_of(entry).renewal]

    def unfinished(self) -> list[Entry]:
        """Returns the commits of rounds that are not finished, in log order."""
        return list(self._log.pending.values())

    def files(self, round: int, stage: str) -> list[FileRef]:
        """Returns the files of a stage, by shard; if a shard was committed under several inputs, those of the latest.

        Empty if the stage has no commit.
        """
        latest: dict[int | None, Entry] = {}
        for entry in sorted(self.entries(round, stage), key=lambda entry: entry.number):
            latest[key_of(entry).shard] = entry
        if not latest:
            return []
        newest = max(latest.values(), key=lambda entry: entry.number)
        whole = key_of(newest).shard is None
        chosen = [newest] if whole else [entry for shard, entry in latest.items() if shard is not None]
        return [file for entry in sorted(chosen, key=_shard) for file in entry.files]

    def rounds(self) -> list[Entry]:
        """Returns the "round" entries, one for each finished round, ascending."""
        return [snapshot.entry for snapshot in self._log.snapshots()]

    def round_entry(self, round: int) -> Entry:
        """Returns the "round" entry of a finished round."""
        return self._log.snapshot(round).entry

    def finished_by(self, round: int) -> Entry:
        """Returns the "session" entry of the writer that finished the round."""
        return self._log.snapshot(round).session

    @property
    def finished(self) -> list[int]:
        """Returns the numbers of the finished rounds, ascending; quicker than :meth:`rounds`."""
        return self._log.finished

    @property
    def last_round(self) -> Entry | None:
        """Returns the "round" entry of the newest finished round; None if there is none. Quicker than `rounds`."""
        finished = self._log.finished
        return self._log.snapshot(finished[-1]).entry if finished else None

    @contextmanager
    def writer(
        self, take_over: bool = False, meta: dict[str, Any] | None = None, *, ends_pause: bool = False
    ) -> Iterator[Writer]:
        """Gives the right to append to the run, until the end of the block.

        Args:
            take_over: take the run from a writer on another host that is known to be dead.
            meta: what the "session" entry says of this writer, beside its process.
            ends_pause: a run that was paused is so no longer; else it stays paused through this session.

        Raises:
            RunBusyError: another process has it, or was faster.
            UnsupportedStoreError: the backend overwrites what it must not.
        """
        writer = Writer(self._objects, self._log, take_over, meta or {}, ends_pause)
        try:
            yield writer
        except BaseException as error:
            try:
                writer.close(type(error).__name__)
            except StoreError as closing:
                error.add_note(f"the run '{self.name}' could not be closed either: {closing}")
            raise
        writer.close(None)

    def _first(self, annex: str) -> str:
        return layout.entry_key(layout.annex_of(self.name, annex), 0)

    def _commits(self, round_number: int) -> list[Entry]:
        with self._log.lock:
            if round_number in self._log.finished:
                return list(self._log.snapshot(round_number).commits)
            return [entry for entry in self._log.pending.values() if entry.round == round_number]

    def _all_commits(self) -> list[Entry]:
        with self._log.lock:
            commits = [entry for snapshot in self._log.snapshots() for entry in snapshot.commits]
            return commits + list(self._log.pending.values())


def _shard(entry: Entry) -> int:
    shard = key_of(entry).shard
    return -1 if shard is None else shard


def _piece(entry: Entry) -> tuple[int, str, bool]:
    key = key_of(entry)
    return key.round, key.stage, key.shard is None
