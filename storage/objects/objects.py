"""Objects under keys, in memory, or in an S3, GCS or Azure bucket: put-if-absent alike on all.

``obstore`` does the work. ``local.py`` adds local disks.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from storage.errors import (
    BackendError,
    MissingObjectError,
    StorageAccessError,
    StoreError,
)
from storage.objects import durable
from storage.objects.patience import Patience
from storage.objects.upload import Upload

_PARALLEL_READS = 16

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it: its key, its size in bytes, and when it was written, by the backend's clock.

    On a local disk that is when anything of the file was changed last: a copy may have the time of its original.
    """

    key: str
    bytes: int
    modified: datetime


class Sink:
    """A file open for writing that counts and hashes what passes."""

    def __init__(self, raw: BinaryIO | Upload, key: str) -> None:
        self._raw, self._key = raw, key
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        with clear_errors(self._key):
            self._raw.write(data)
        view = memoryview(data)
        self._hash.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class RangeReader(io.RawIOBase):
    """A seekable file over ranged reads of one object."""

    def __init__(self, store: obstore.store.ObjectStore, key: str, patience: Patience) -> None:
        self._store, self._key, self._patience, self._position = store, key, patience, 0
        with clear_errors(key):
            self._size = patience.ask(lambda: obstore.head(store, key)["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def size(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size < 0 else min(size, left)
        if not length:
            return b""
        start = self._position
        with clear_errors(self._key):
            data = self._patience.ask(
                lambda: bytes(obstore.get_range(self._store, self._key, start=start, length=length))
            )
        self._position += len(data)
        return data


class Objects:
    """Objects under keys. Every failure is a StoreError.

    Args:
        root: how people call it.
        open_store: the client, which tries again by itself for as many seconds as it is given, or else a few times.

    Attributes:
        patience: how long a backend is waited for that does not answer, and who is told.
    """

    def __init__(self, root: str, open_store: Callable[[float | None], obstore.store.ObjectStore]) -> None:
        self._open_store = open_store
        self._store = open_store(None)
        self.patience = Patience(root)

    def create(self, key: str, data: bytes) -> bool:
        """Writes the object if none is there, and returns whether it did. It is durable then.

        Raises:
            BackendError: the outcome is unknown, the object may or may not be there.
        """

        def put() -> bool:
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError as error:
                # A conflict is no answer; Azure says so too of what is there.
                if "status code: 409" in str(error) and self.size(key) is None:
                    raise
                return False
            return True

        # If a write took place whose answer was lost, the next one finds its bytes there, which callers recognise as
        # their own.
        return self._ask(key, put)

    def read(self, key: str) -> bytes:
        """Returns the object's bytes; raises MissingObjectError if there is none."""
        return self._ask(key, lambda: bytes(obstore.get(self._store, key).bytes()))

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """Returns the bytes of several objects, read at the same time if that saves round trips."""
        if len(keys) < 2:
            return [self.read(key) for key in keys]
        with ThreadPoolExecutor(min(_PARALLEL_READS, len(keys))) as pool:
            return list(pool.map(self.read, keys))

    def open(self, key: str) -> BinaryIO:
        """Opens the object as a seekable file that reads only what is asked for."""
        return RangeReader(self._store, key, self.patience)  # type: ignore[return-value]

    def local_path(self, key: str) -> Path | None:
        """Says where the object lies on a local disk; None on other backends."""
        return None

    def size(self, key: str) -> int | None:
        """Returns the object's size in bytes, None if there is none."""
        try:
            return self._ask(key, lambda: obstore.head(self._store, key)["size"])
        except MissingObjectError:
            return None

    def written(self, key: str) -> datetime:
        """Says when the object was written, by the backend's clock; raises MissingObjectError if there is none."""
        return self._ask(key, lambda: obstore.head(self._store, key)["last_modified"])

    def keys(self, prefix: str, after: str | None = None) -> list[str]:
        """Returns the keys below a prefix, sorted; only those greater than ``after``."""
        listed = self._ask(prefix, lambda: obstore.list(self._store, prefix, offset=after, chunk_size=1000).collect())
        return sorted(item["path"] for item in listed)

    def listing(self, prefix: str) -> list[Listed]:
        """Lists the objects below a prefix, sorted by key."""
        listed = self._ask(prefix, lambda: obstore.list(self._store, prefix, chunk_size=1000).collect())
        found = [Listed(item["path"], item["size"], item["last_modified"]) for item in listed]
        return sorted(found, key=lambda item: item.key)

    def children(self, prefix: str) -> list[str]:
        """Returns the names of the directories right below a prefix, sorted."""
        listed = self._ask(prefix, lambda: obstore.list_with_delimiter(self._store, prefix))
        return sorted(path.rpartition("/")[2] for path in listed["common_prefixes"])

    @contextmanager
    def sink(self, key: str, source: Path | None = None) -> Iterator[Sink]:
        """Makes a new object to write to, piece by piece; durable at the end of the block, gone if it fails.

        Args:
            source: a file that has all that will be written, so that a bucket's client need not keep it for a repeat.
        """
        with Upload(self._open_store, key, self.patience, lambda: self.size(key), source) as upload:
            yield Sink(upload, key)
            with clear_errors(key):
                upload.close(self._store)

    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; one that is not there is no error."""
        for key in keys:
            with suppress(MissingObjectError):
                self._ask(key, partial(obstore.delete, self._store, key))

    def _ask(self, key: str, call: Callable[[], _Answer]) -> _Answer:
        with clear_errors(key):
            return self.patience.ask(call)

    def remove_empty(self, prefix: str) -> None:
        """Removes the directory below which no object is left; only local disks have such directories."""


@contextmanager
def clear_errors(key: str) -> Iterator[None]:
    """Turns the errors of the backend into those of the store."""
    try:
        with durable.clear_errors(key):
            yield
    except StoreError:
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise StorageAccessError(f"access to {key} is denied: {first_line(error)}") from error
    except (BaseError, ValueError) as error:
        raise BackendError(f"the storage backend failed at {key}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says."""
    return str(error).partition("\n")[0]
