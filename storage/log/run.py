"""A run: reading what its log names, and the one writer that appends to it."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Literal

from storage.errors import (
    BackendError,
    CorruptEntryError,
    InvalidEntryError,
    MissingObjectError,
    RoundFinishedError,
    RunBusyError,
    RunNotFoundError,
    StoreError,
    UnsupportedStoreError,
    remedy,
)
from storage.log import lease, tombstones
from storage.log.log import Log
from storage.log.manifest import MAX_NUMBER, Entry, FileRef, Key, Kind, decode_entry, encode_entry
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

    def refresh(self) -> None:
        """Read what was committed since."""
        self._log.refresh()

    @property
    def state(self) -> Literal["running", "stopped"]:
        """Whether a writer has the run open; a writer on another host counts as running until it closes."""
        last = self._log.session
        held = last is not None and not self._log.session_closed and lease.holder(last) != "dead"
        return "running" if held else "stopped"

    @property
    def pause(self) -> dict[str, Any] | None:
        """Who holds the run back, and since when, if it was paused; None if it may go on."""
        return self._log.pause

    @property
    def session(self) -> Entry | None:
        """The newest "session" entry: whoever has the run open, or had it last."""
        return self._log.session

    def written(self, entry: Entry) -> datetime:
        """When an entry was written, by the store's clock; the time in it is by its writer's."""
        return self._objects.written(layout.entry_key(self.name, entry.number))

    @property
    def dropped(self) -> dict[str, Entry]:
        """The files that the run has given up, by path, each with the tombstone that says why."""
        return self._log.dropped

    def check_kept(self, files: Sequence[FileRef]) -> None:
        """DroppedFileError where the run has given one of these files up, whether or not its bytes are still there."""
        dropped = self._log.dropped
        gone = next((file.path for file in files if file.path in dropped), None)
        if gone is not None:
            raise tombstones.dropped_error(self._log, gone, dropped)

    def find(self, key: Key) -> Entry | None:
        """The commit with exactly this key."""
        if key.round not in self._log.finished:
            return self._log.pending_commit(key)
        return next((entry for entry in self._commits(key.round) if entry.key == key), None)

    def entries(self, round: int | None = None, stage: str | None = None) -> list[Entry]:
        """The commits of a round, or of all, in log order; the shards of one stage stand together, by index."""
        chosen = self._all_commits() if round is None else self._commits(round)
        if stage is not None:
            chosen = [entry for entry in chosen if entry.key is not None and entry.key.stage == stage]
        first: dict[tuple[int, str, bool], int] = {}
        for entry in chosen:
            first.setdefault(_piece(entry), entry.number)
        return sorted(chosen, key=lambda entry: (first[_piece(entry)], _shard(entry), entry.number))

    def work(self, round: int, stage: str | None = None) -> list[Entry]:
        """The commits as :meth:`entries` has them, each piece of work once, also one that was made the newest again."""
        return [entry for entry in self.entries(round, stage) if not _key(entry).renewal]

    def unfinished(self) -> list[Entry]:
        """The commits of rounds that are not finished, in log order."""
        return list(self._log.pending.values())

    def files(self, round: int, stage: str) -> list[FileRef]:
        """The files of a stage, by shard; where a shard was committed under several inputs, those of the latest.

        Empty where the stage has no commit.
        """
        latest: dict[int | None, Entry] = {}
        for entry in sorted(self.entries(round, stage), key=lambda entry: entry.number):
            latest[_key(entry).shard] = entry
        if not latest:
            return []
        newest = max(latest.values(), key=lambda entry: entry.number)
        whole = _key(newest).shard is None
        chosen = [newest] if whole else [entry for shard, entry in latest.items() if shard is not None]
        return [file for entry in sorted(chosen, key=_shard) for file in entry.files]

    def rounds(self) -> list[Entry]:
        """The "round" entries, one for each finished round, ascending."""
        return [snapshot.entry for snapshot in self._log.snapshots()]

    def round_entry(self, round: int) -> Entry:
        """The "round" entry of a finished round."""
        return self._log.snapshot(round).entry

    def finished_by(self, round: int) -> Entry:
        """The "session" entry of the writer that finished the round."""
        return self._log.snapshot(round).session

    @property
    def finished(self) -> list[int]:
        """The numbers of the finished rounds, ascending; quicker than :meth:`rounds`."""
        return self._log.finished

    @property
    def last_round(self) -> Entry | None:
        """The "round" entry of the newest finished round; quicker than :meth:`rounds` in a long run."""
        finished = self._log.finished
        return self._log.snapshot(finished[-1]).entry if finished else None

    @contextmanager
    def writer(
        self, take_over: bool = False, meta: dict[str, Any] | None = None, *, ends_pause: bool = False
    ) -> Iterator["Writer"]:
        """The right to append to the run, until the end of the block.

        Args:
            take_over: take the run from a writer on another host that is known to be dead.
            meta: what the "session" entry says of this writer, beside its process.
            ends_pause: a run that was paused is so no longer; else it stays paused through this session.

        Raises:
            RunBusyError: another process has it, or was faster.
            UnsupportedStoreError: the backend overwrites where it must not.
        """
        writer = Writer(self, self._objects, self._log, take_over, meta or {}, ends_pause)
        try:
            yield writer
        except BaseException as error:
            try:
                writer._close(type(error).__name__)
            except StoreError as closing:
                error.add_note(f"the run '{self.name}' could not be closed either: {closing}")
            raise
        writer._close(None)

    def _commits(self, round_number: int) -> list[Entry]:
        with self._log.lock:
            if round_number in self._log.finished:
                return list(self._log.snapshot(round_number).commits)
            return [entry for entry in self._log.pending.values() if entry.round == round_number]

    def _all_commits(self) -> list[Entry]:
        with self._log.lock:
            commits = [entry for snapshot in self._log.snapshots() for entry in snapshot.commits]
            return commits + list(self._log.pending.values())


class Writer:
    """Appends to the log of a run. Safe to use from several threads of its process."""

    def __init__(
        self, run: Run, objects: Objects, log: Log, take_over: bool, meta: dict[str, Any], ends_pause: bool
    ) -> None:
        self._run, self._objects, self._log = run, objects, log
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
        """Make files visible; where the key is committed already, return that entry and change nothing.

        Raises:
            RunBusyError: another writer has taken the run over.
            RoundFinishedError: the round is finished, and has no such commit.
            InvalidEntryError: the meta is not JSON.
            BackendError: the outcome is unknown: to commit the same key again is safe.
        """
        with self._log.lock:
            found = self._run.find(key)
            if found is not None:
                return found
            self._check_open()
            if key.round in self._log.finished:
                raise RoundFinishedError(
                    f"round {key.round} of run '{self._run.name}' is finished: {key} cannot be added"
                )
            return self._publish("commit", key, tuple(files), meta or {})

    def renew(self, entry: Entry) -> Entry:
        """Make a commit the newest of its piece of work again, where one of other inputs has come after it.

        Readers take the newest, as :meth:`Run.files` does. It is published again, with its files, under a key of its
        own; that of a finished round stays as it is.

        Raises:
            As for :meth:`commit`.
        """
        with self._log.lock:
            key = _key(entry)
            newest = self._log.newest_commit(key)
            if newest is None or (newest.files, newest.meta) == (entry.files, entry.meta):
                return entry
            return self.commit(key.renewed(newest.number), entry.files, entry.meta)

    def finish_round(self, round: int, meta: dict[str, Any]) -> Entry:
        """Make the round visible as a whole; where it is finished already, return its entry and change nothing.

        Raises:
            RoundFinishedError: a later round is finished.
            Others as for :meth:`commit`.
        """
        with self._log.lock:
            finished = self._log.finished
            if round not in finished:
                if finished and round < finished[-1]:
                    raise RoundFinishedError(
                        f"round {round} of run '{self._run.name}' cannot be finished after round {finished[-1]}"
                    )
                self._publish("round", Key(round, "round"), (), meta)
            self._log.write_snapshots()
            return self._log.snapshot(round).entry

    def drop(self, files: Sequence[FileRef], reason: str) -> Entry | None:
        """Give files up for good, those of finished rounds too: publish that they are gone, then remove their bytes.

        The bytes stay where they are another run's or shared, and where a fork names them; those that a crash leaves
        behind are swept later.

        Args:
            files: those that are dropped already are passed over; None is returned where no other is left.
            reason: as in "the weights of round 3 were ...": pruned, superseded.

        Raises:
            As for :meth:`commit`; CorruptEntryError where the log of a fork is damaged.
        """
        with self._log.lock:
            dropped = self._log.dropped
            left = tuple(file for file in files if file.path not in dropped)
            unfinished = {file.path for commit in self._log.pending.values() for file in commit.files}
            known_to_forks = any(file.path not in unfinished for file in files)  # forks share finished rounds only
            needed = tombstones.needed_by_forks(self._objects, self._run.name) if known_to_forks else set()
            entry = self._publish("release", None, left, {"reason": reason}) if left else None
            own = [file.path for file in files if layout.run_of(file.path) == self._run.name]
            tombstones.remove(self._objects, set(own) - needed)
            return entry

    def pause(self, meta: dict[str, Any]) -> None:
        """Leave the run paused at the end of this session: until a writer ends the pause, those that ask hold back.

        Args:
            meta: what :attr:`Run.pause` is to say of it.
        """
        self._paused = meta

    def leave(self) -> None:
        """Write no more, and leave the log as it is, without the entry that closes the session."""
        with self._log.lock:
            lease.end(self.session)
            self._ended = f"the writer of run '{self._run.name}' was closed: open another"

    def _begin(self, take_over: bool, meta: dict[str, Any], ends_pause: bool) -> None:
        """Publish the session, once no other one holds the run."""
        log, name = self._log, self._run.name
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
            name = self._run.name
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
            if kind == "commit" and key is not None and (found := self._run.find(key)) is not None:
                return found
            if kind == "round" and key is not None and key.round in self._log.finished:
                return self._log.snapshot(key.round).entry

    def _catch_up(self, number: int) -> None:
        self._log.refresh()
        if self._log.head.number < number:
            raise BackendError(
                f"log entry {number} of run '{self._run.name}' is there, but the backend does not list it"
            )

    def _check_fence(self) -> None:
        last = self._log.session
        if last is None or last.session == self.session:
            return
        self._ended = (
            f"run '{self._run.name}' was taken over by {lease.describe_holder(last)}: this writer has stopped; what "
            "it had committed is kept, resume the run once the other one is done"
        )
        raise RunBusyError(self._ended)

    def _draft(self, kind: Kind, key: Key | None, files: tuple[FileRef, ...], meta: dict[str, Any]) -> Entry:
        number = self._log.head.number + 1
        if number > MAX_NUMBER:
            raise InvalidEntryError(f"the log of run '{self._run.name}' is full")
        return Entry(number, kind, self.session, key, files, meta, self._log.head_digest, lease.utc_now())

    def _put(self, draft: Entry) -> Entry | None:
        """The entry as readers see it; None if another entry has its number."""
        data = encode_entry(draft)
        if not put_once(self._objects, layout.entry_key(self._run.name, draft.number), data):
            return None
        entry = decode_entry(data)
        self._log.append(entry, data)
        return entry

    def _close(self, error: str | None) -> None:
        with self._log.lock:
            lease.end(self.session)
            if self._ended is None:
                with suppress(RunBusyError):  # the newer session closes this one
                    pause = {} if self._paused is None else {"paused": self._paused}
                    self._publish("close", None, (), {"error": error, **pause})
                self._ended = f"the writer of run '{self._run.name}' was closed: open another"


def put_once(objects: Objects, key: str, data: bytes) -> bool:
    """Put-if-absent that recognises its own bytes: a write whose reply was lost counts as done.

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


def _key(entry: Entry) -> Key:
    if entry.key is None:
        raise CorruptEntryError(f"log entry {entry.number} is a commit without a key")
    return entry.key


def _shard(entry: Entry) -> int:
    shard = _key(entry).shard
    return -1 if shard is None else shard


def _piece(entry: Entry) -> tuple[int, str, bool]:
    key = _key(entry)
    return key.round, key.stage, key.shard is None
