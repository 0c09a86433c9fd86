"""Objects on a local disk, with what obstore leaves out: fsync, and the refusal of links that lead out of the root."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from obstore.store import LocalStore

from storage.errors import BackendError, InvalidNameError, UnsupportedStoreError
from storage.objects import durable
from storage.objects.objects import Listed, Objects, Sink, clear_errors


class LocalObjects(Objects):
    """Objects in a local directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.path.join(root, "")
        super().__init__(str(root), lambda seconds: LocalStore(root))

    def _check_root(self) -> None:
        """Raises BackendError if the root is not there any more: nothing may make it again at the place that it had."""
        if not self.root.is_dir():
            raise _gone(self.root)

    def local_path(self, key: str) -> Path:
        """Says where the object lies; InvalidNameError if links lead out of the root, BackendError if that is gone."""
        self._check_root()
        with clear_errors(key):
            path = os.path.realpath(f"{self._prefix}{key}")
        if not path.startswith(self._prefix):
            raise InvalidNameError(f"{key!r} leads out of {self.root} through a symbolic link: remove the link")
        return Path(path)

    def create(self, key: str, data: bytes) -> bool:
        return durable.create(self.local_path(key), data)

    def read(self, key: str) -> bytes:
        with clear_errors(key):
            return self.local_path(key).read_bytes()

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        return [self.read(key) for key in keys]

    def open(self, key: str) -> BinaryIO:
        with clear_errors(key):
            return self.local_path(key).open("rb")

    def size(self, key: str) -> int | None:
        path = self.local_path(key)
        return path.stat().st_size if path.is_file() else None

    def written(self, key: str) -> datetime:
        with clear_errors(key):
            return datetime.fromtimestamp(self.local_path(key).stat().st_mtime, UTC)

    def keys(self, prefix: str, after: str | None = None) -> list[str]:
        self.local_path(prefix)
        return super().keys(prefix, after)

    def listing(self, prefix: str) -> list[Listed]:
        """Lists plain files; those too that obstore leaves out because a killed writer had not named them yet."""
        base, found = self.local_path(prefix), []
        with clear_errors(prefix):
            for directory, _, names in os.walk(base):
                for path in (Path(directory, name) for name in names):
                    if path.is_symlink() or not path.is_file():
                        continue
                    with suppress(FileNotFoundError):  # it was removed meanwhile
                        state = path.stat()
                        key = f"{prefix}/{path.relative_to(base).as_posix()}"
                        found.append(Listed(key, state.st_size, datetime.fromtimestamp(state.st_ctime, UTC)))
        return sorted(found, key=lambda item: item.key)

    def children(self, prefix: str) -> list[str]:
        self.local_path(prefix)
        return super().children(prefix)

    @contextmanager
    def sink(self, key: str, source: Path | None = None) -> Iterator[Sink]:
        path = self.local_path(key)
        with durable.clear_errors(path):
            durable.make_directories(path.parent)
            try:
                with path.open("xb") as raw:
                    yield Sink(raw, str(path))
                durable.sync_all([path, path.parent])
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with clear_errors(key):
                self.local_path(key).unlink(missing_ok=True)

    def remove_empty(self, prefix: str) -> None:
        base = self.local_path(prefix)
        for directory, _, _ in os.walk(base, topdown=False):
            with suppress(OSError):  # not empty, or gone
                Path(directory).rmdir()


def open_local(path: Path, *, create: bool) -> LocalObjects:
    """Opens the objects under a directory, which is created unless it must be there; errors as of ``open_objects``."""
    with durable.clear_errors(path):
        if path.exists() and not path.is_dir():
            raise UnsupportedStoreError(f"{path} is no directory: give a directory for the store")
        resolved = path.expanduser().resolve()
        _check_encodable(resolved)
        if create:
            durable.make_directories(resolved)
        elif not resolved.is_dir():
            raise _gone(resolved)
    return LocalObjects(resolved)


def _check_encodable(root: Path) -> None:
    """Raises InvalidNameError if the directory's name could be written into no record and no address."""
    try:
        str(root).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(root).decode(errors="backslashreplace")
        raise InvalidNameError(f"the name of the directory {shown} is not UTF-8: rename it") from None


def _gone(root: Path) -> BackendError:
    return BackendError(
        f"the root {root} is gone, moved or removed since it was opened: put it back, or go on where it is now, with "
        "--root"
    )
