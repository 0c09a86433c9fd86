"""The one writer of a run: it appends entries to the log, each put if absent, after a session that holds the run."""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from storage.errors import (
    BackendError,
    InvalidEntryError,
    MissingObjectError,
    RoundFinishedError,
    RunBusyError,
    UnsupportedStoreError,
    remedy,
)
from storage.log import lease, tombstones
from storage.log.log import Log
from storage.log.manifest import MAX_NUMBER, Entry, FileRef, Key, Kind, decode_entry, encode_entry, key_of
from storage.objects import layout
from storage.objects.objects import Objects


class Writer:
    """Appends to the log of a run. Safe to use from several threads of its process."""

    def __init__(self, objects: Objects, log: Log, take_over: bool, meta: dict[str, Any], ends_pause: bool) -> None:
        self._objects, self._log = objects, log
        self._ended: str | None = None
        self._paused: dict[str, Any] | None = None
        self.session = uuid.uuid4().hex
        try:
            self._begin(take_over, meta, ends_pause)
            log.write_snapshots()
        except BaseException:
            lease.end(self.session)
            raise

    def commit(self, key: Key, files: Sequence[FileRef], meta: dict[str, Any] | None = None) -> Entry:
        """Makes files visible; if the key is committed already, returns that entry and changes nothing.

        Raises:
            RunBusyError: another writer has taken the run over.
            RoundFinishedError: the round is finished, and has no such commit.
            InvalidEntryError: the meta is not JSON.
            BackendError: the outcome is unknown: to commit the same key again is safe.
        """
        with self._log.lock:
            found = self._log.find(key)
            if found is not None:
                return found
            self._check_open()
            if key.round in self._log.finished:
                raise RoundFinishedError(
                    f"round {key.round} of run '{self._log.run}' is finished: {key} cannot be added"
                )
            return self._publish("commit", key, tuple(files), meta or {})

    def renew(self, entry: Entry) -> Entry:
        """Makes a commit the newest of its piece of work again, if one of other inputs has come after it.

        Readers take the newest, as ``Run.files`` does. It is published again, with its files, under a key of its own;
        that of a finished round stays as it is.

        Raises:
            As for :meth:`commit`.
        """
        with self._log.lock:
            key = key_of(entry)
            newest = self._log.newest_commit(key)
            if newest is None or (newest.files, newest.meta) == (entry.files, entry.meta):
                return entry
            return self.commit(key.renewed(newest.number), entry.files, entry.meta)

    def finish_round(self, round: int, meta: dict[str, Any]) -> Entry:
        """Makes the round visible as a whole; if it is finished already, returns its entry and changes nothing.

        Raises:
            RoundFinishedError: a later round is finished.
            Others as for :meth:`commit`.
        """
        with self._log.lock:
            finished = self._log.finished
            if round not in finished:
                if finished and round < finished[-1]:
                    raise RoundFinishedError(
                        f"round {round} of run '{self._log.run}' cannot be finished after round {finished[-1]}"
                    )
                self._publish("round", Key(round, "round"), (), meta)
            self._log.write_snapshots()
            return self._log.snapshot(round).entry

    def drop(self, files: Sequence[FileRef], reason: str) -> Entry | None:
        """Drops files for good, those of finished rounds too: publishes that they are gone, then removes their bytes.

        The bytes stay if they are another run's or shared, or if a fork names them; those that a crash leaves
        behind are swept later.

        Args:
            files: those that are dropped already are passed over; None is returned if no other is left.
            reason: as in "the weights of round 3 were ...": pruned, superseded.

        Raises:
            As for :meth:`commit`; CorruptEntryError if the log of a fork is damaged.
        """
        with self._log.lock:
            dropped = self._log.dropped
            left = tuple(file for file in files if file.path not in dropped)
            unfinished = {file.path for commit in self._log.pending.values() for file in commit.files}
            known_to_forks = any(file.path not in unfinished for file in files)  # forks share finished rounds only
            needed = tombstones.needed_by_forks(self._objects, self._log.run) if known_to_forks else set()
            entry = self._publish("release", None, left, {"reason": reason}) if left else None
            own = [file.path for file in files if layout.run_of(file.path) == self._log.run]
            tombstones.remove(self._objects, set(own) - needed)
            return entry

    def pause(self, meta: dict[str, Any]) -> None:
        """Leaves the run paused at the end of this session: until a writer ends the pause, those that ask hold back.

        Args:
            meta: what :attr:`storage.log.run.Run.pause` is to say of it.
        """
        self._paused = meta

    def leave(self) -> None:
        """Writes no more, and leaves the log as it is, without the entry that closes the session."""
        with self._log.lock:
            lease.end(self.session)
            self._ended = f"the writer of run '{self._log.run}' was closed: open another"

    def _begin(self, take_over: bool, meta: dict[str, Any], ends_pause: bool) -> None:
        """Publishes the session, once no other one holds the run."""
        log, name = self._log, self._log.run
        with log.lock:
            log.refresh()
            while True:
                self._check_free(take_over)
                self._paused = None if ends_pause else log.pause
                pause = {} if self._paused is None else {"paused": self._paused}
                draft = self._draft("session", None, (), {**meta, **pause, **lease.describe_process()})
                entry = self._put(draft)
                if entry is not None:
                    break
                self._catch_up(draft.number)
            if self._objects.create(layout.entry_key(name, entry.number), encode_entry(entry)):
                raise UnsupportedStoreError(
                    "the backend overwrites objects that it is asked to create: keep the store on another one"
                )

    def _check_free(self, take_over: bool) -> None:
        last = self._log.session
        if last is None or self._log.session_closed:
            return
        state = lease.holder(last)
        if state == "alive" or (state == "unknown" and not take_over):
            name = self._log.run
            taking = f"if it is dead, {remedy('take over', name)}"
            way_out = "wait for it, or stop it" if state == "alive" else taking
            raise RunBusyError(f"run '{name}' is written by {lease.describe_holder(last)}: {way_out}")

    def _check_open(self) -> None:
        if self._ended is not None:
            raise RunBusyError(self._ended)

    def _publish(self, kind: Kind, key: Key | None, files: tuple[FileRef, ...], meta: dict[str, Any]) -> Entry:
        self._check_open()
        while True:
            draft = self._draft(kind, key, files, meta)
            entry = self._put(draft)
            if entry is not None:
                return entry
            self._catch_up(draft.number)
            self._check_fence()
            # An earlier attempt of this session, whose outcome was unknown, arrived late.
            if kind == "commit" and key is not None and (found := self._log.find(key)) is not None:
                return found
            if kind == "round" and key is not None and key.round in self._log.finished:
                return self._log.snapshot(key.round).entry

    def _catch_up(self, number: int) -> None:
        self._log.refresh()
        if self._log.head.number < number:
            raise BackendError(
                f"log entry {number} of run '{self._log.run}' is there, but the backend does not list it"
            )

    def _check_fence(self) -> None:
        last = self._log.session
        if last is None or last.session == self.session:
            return
        self._ended = (
            f"run '{self._log.run}' was taken over by {lease.describe_holder(last)}: this writer has stopped, and what "
            f"it had committed is kept; once the other one is done, {remedy('go on', self._log.run)}"
        )
        raise RunBusyError(self._ended)

    def _draft(self, kind: Kind, key: Key | None, files: tuple[FileRef, ...], meta: dict[str, Any]) -> Entry:
        number = self._log.head.number + 1
        if number > MAX_NUMBER:
            raise InvalidEntryError(f"the log of run '{self._log.run}' is full")
        return Entry(number, kind, self.session, key, files, meta, self._log.head_digest, lease.utc_now())

    def _put(self, draft: Entry) -> Entry | None:
        """Returns the entry as readers see it; None if another entry has its number."""
        data = encode_entry(draft)
        if not put_once(self._objects, layout.entry_key(self._log.run, draft.number), data):
            return None
        entry = decode_entry(data)
        self._log.append(entry, data)
        return entry

    def close(self, error: str | None) -> None:
        """Closes the session; the log says with which error, if there was one."""
        with self._log.lock:
            lease.end(self.session)
            if self._ended is None:
                with suppress(RunBusyError):  # the newer session closes this one
                    pause = {} if self._paused is None else {"paused": self._paused}
                    self._publish("close", None, (), {"error": error, **pause})
                self._ended = f"the writer of run '{self._log.run}' was closed: open another"


def put_once(objects: Objects, key: str, data: bytes) -> bool:
    """Writes an object if none is there, and returns whether it has these bytes now: a lost reply does no harm.

    Raises:
        BackendError: the write failed, and the object is not there.
    """
    try:
        if objects.create(key, data):
            return True
    except BackendError:
        try:
            there = objects.read(key)
        except MissingObjectError:
            there = None
        if there is None:
            raise
        return there == data
    return objects.read(key) == data
