"""A store: the runs under one root."""

import difflib
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.errors import InvalidNameError, RunExistsError, RunNotFoundError, UnsupportedStoreError, remedy
from storage.log.lease import utc_now
from storage.log.manifest import Entry, encode_entry
from storage.log.run import Run
from storage.log.writer import put_once
from storage.objects import layout
from storage.objects.local import LocalObjects
from storage.objects.objects import Objects
from storage.objects.opening import open_objects


class Store:
    """The runs under a root.

    Attributes:
        root: the directory, absolute, or the URI: :meth:`open` with it gives the same store in another process.
        local_root: the directory; None elsewhere than on a local disk.
        objects: the objects under the root.
    """

    def __init__(self, root: str, objects: Objects, local_root: Path | None = None) -> None:
        self.root = root
        self.objects = objects
        self.local_root = local_root

    @classmethod
    def open(cls, root: str | Path, *, create: bool = True) -> "Store":
        """Opens the store in a local directory, which is created, or under s3://, gs://, az:// or memory://.

        Credentials and endpoints of a bucket come from the usual environment variables.

        Args:
            create: whether a directory that is not there is made.

        Raises:
            UnsupportedStoreError: the URI is none of these.
            BackendError: the directory is not there, and is not to be made.
            StorageAccessError: the directory cannot be created.
        """
        objects = open_objects(root, create=create)
        if isinstance(objects, LocalObjects):
            return cls(str(objects.root), objects, objects.root)
        return cls(str(root), objects)

    @property
    def is_local(self) -> bool:
        return self.local_root is not None

    def run_names(self) -> list[str]:
        """Returns the names of the runs, sorted. A directory without a first log entry is no run."""
        return [name for name in self.objects.children(layout.RUNS) if self._exists(name)]

    def create_run(self, name: str, header: dict[str, Any]) -> Run:
        """Creates a new run with that header; one with a ``parent`` of a ``run`` and a ``round`` is a fork.

        Raises:
            InvalidNameError: the name is none that the store accepts.
            RunExistsError: the run is there.
            InvalidEntryError: the header is not JSON.
            UnsupportedStoreError: the backend has no put-if-absent.
        """
        layout.check_run_name(name)
        return self._create(name, header)

    def create_annex(self, run: Run, name: str, header: dict[str, Any]) -> Run:
        """Creates an annex of a run, see :meth:`storage.log.run.Run.annex`; raises as :meth:`create_run` does."""
        layout.check_run_name(name)
        return self._create(layout.annex_of(run.name, name), header)

    def _create(self, name: str, header: dict[str, Any]) -> Run:
        key = layout.entry_key(name, 0)
        if not self._exists(name) and self.objects.keys(layout.run_prefix(name)) and not self._exists(name):
            raise RunExistsError(f"what is left of a deleted run '{name}' is in the way: {remedy('clear', name)}")
        data = encode_entry(Entry(0, "run", uuid.uuid4().hex, None, (), header, None, utc_now()))
        if not put_once(self.objects, key, data):
            raise RunExistsError(f"run '{name}' is already there: {remedy('go on', name)}, or choose another name")
        self._check_refuses(key, data)
        return Run(self.objects, name)

    def run(self, name: str, *, intact_part: bool = False) -> Run:
        """Returns the run of that name.

        Args:
            intact_part: read a damaged log as far as it is intact, to save what is there; nothing can be written to it.

        Raises:
            RunNotFoundError: there is none; the message names those with a similar name.
        """
        layout.check_run_name(name)
        if not self._exists(name):
            raise self.no_run(name)
        return Run(self.objects, name, intact_part=intact_part)

    def no_run(self, name: str) -> RunNotFoundError:
        """Returns what to raise if there is no run of that name; the message names similar ones, or all."""
        return RunNotFoundError(f"there is no run '{name}' in {self.root}{self._similar(name)}")

    def check_root(self) -> None:
        """Checks that the root keeps an object, and refuses to create it again; the object is removed at the end.

        Raises:
            UnsupportedStoreError: the backend overwrites what it is asked to create, or does not keep it.
            Others of the store's errors, if it cannot be written or reached.
        """
        key = f"{layout.new_shared_directory_key('probe', uuid.uuid4().hex)}/probe"
        try:
            if not put_once(self.objects, key, b"probe") or self.objects.read(key) != b"probe":
                raise UnsupportedStoreError(
                    f"{self.root} does not keep what is written to it: keep the store elsewhere"
                )
            self._check_refuses(key, b"another")
        finally:
            self.objects.delete([key])
            self.objects.remove_empty(key.rpartition("/")[0])

    def now(self) -> datetime:
        """Returns the time by the clock that dates the store's files, which need not be this machine's.

        Raises:
            StorageAccessError: nothing can be written there, so that nobody can tell.
        """
        key = f"{layout.new_shared_directory_key('clock', uuid.uuid4().hex)}/now"
        try:
            put_once(self.objects, key, b"now")
            return self.objects.written(key)
        finally:
            self.objects.delete([key])
            self.objects.remove_empty(key.rsplit("/", 2)[0])

    def report_path(self, run: str) -> Path | None:
        """Says where the report of a run lies on a local disk; None elsewhere, where :meth:`report_key` names it."""
        return self.objects.local_path(self.report_key(run))

    def log_directory(self, run: str) -> Path | None:
        """Says where processes that serve a run keep their logs on a local disk; None elsewhere."""
        return self.objects.local_path(layout.process_log_prefix(run))

    def report_key(self, run: str) -> str:
        """Returns the key of a run's report."""
        return layout.report_key(run)

    def _check_refuses(self, key: str, data: bytes) -> None:
        """Raises UnsupportedStoreError if the backend creates an object that is there."""
        if self.objects.create(key, data):
            raise UnsupportedStoreError(
                f"{self.root} overwrites objects that it is asked to create: keep the store elsewhere"
            )

    def _exists(self, name: str) -> bool:
        try:
            return self.objects.size(layout.entry_key(name, 0)) is not None
        except InvalidNameError:
            return False

    def _similar(self, name: str) -> str:
        names = self.run_names()
        near = difflib.get_close_matches(name, names, n=3)
        if near:
            return ": did you mean " + " or ".join(f"'{other}'" for other in near) + "?"
        return f": its runs are {', '.join(names[:10])}" if names else ": it holds no runs yet"
