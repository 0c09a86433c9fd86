"""Writes to a local disk that are still there after a power cut: files and directories are fsynced."""

import errno
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import (
    BackendError,
    InvalidNameError,
    MissingObjectError,
    StorageAccessError,
    StorageFullError,
    StoreError,
    remedy,
)

_MOST_AT_ONCE = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NUMBER = re.compile(r"(?:os error |code: )(\d+)")


@contextmanager
def clear_errors(path: Path | str) -> Iterator[None]:
    """Turns the errors of the operating system into those of the store, each one clear sentence."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise MissingObjectError(f"there is no {path}") from error
    except OSError as error:
        _refuse(error.errno, path, error)
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidNameError(f"the file system does not take a name as long as {path}") from error
        raise BackendError(f"the file system failed at {path}: {error}") from error


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turns errors of a full disk or of missing permission into those of the store, of whatever class they are.

    Libraries that are written in Rust say the number of the error only in its message. All other errors stay as they
    are.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        found = _NUMBER.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        _refuse(number, path, error)
        raise


def _refuse(number: int | None, path: Path | str, error: Exception) -> None:
    if number in _FULL:
        raise StorageFullError(f"no room left to write {path}: free some space, then {remedy('try again')}") from error
    if number in _DENIED and number is not None:
        raise StorageAccessError(f"cannot access {path}: {os.strerror(number)}; check its permissions") from error


def make_directories(path: Path) -> None:
    """Creates the directory and its missing ancestors, durably."""
    if path.is_dir():
        return
    make_directories(path.parent)
    with suppress(FileExistsError):  # another process was faster
        path.mkdir()
    sync(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Writes a file if there is none: True if it was written, False if one was there. Durable when it returns.

    The bytes are on disk before the name is: a power cut leaves the whole file or none, never an empty or torn one.
    """
    with clear_errors(path):
        make_directories(path.parent)
        # Listings of obstore leave out names that end in '#' and digits, as they do for its own staged files.
        staged = path.with_name(f"{path.name}-{uuid.uuid4().hex}#1")
        try:
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(staged, path)
            except FileExistsError:
                return False
        finally:
            staged.unlink(missing_ok=True)
        sync(path.parent)
    return True


def sync_all(paths: Sequence[Path]) -> None:
    """Syncs files and directories at the same time: the disk takes them together, so that one wait does for all."""
    *others, last = paths
    with ThreadPoolExecutor(max(1, min(len(others), _MOST_AT_ONCE))) as pool:
        waiting = [pool.submit(sync, path) for path in others]
        sync(last)
        for other in waiting:
            other.result()


def sync(path: Path) -> None:
    """Calls fsync on a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
