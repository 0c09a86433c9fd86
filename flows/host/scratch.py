"""Where a run keeps local copies of what lies in a bucket, and its workers their temporary files."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import StorageAccessError


@contextmanager
def scratch_directory(identity: str) -> Iterator[Path]:
    """Makes a new local directory, removed at the end; if the run fails, the logs in it stay, for people to read.

    What a killed process of the same run left, or one that failed, is removed first; what a living one holds stays.

    Args:
        identity: of the run, which no other one has, under whatever root it is.

    Raises:
        StorageAccessError: the directory was removed meanwhile, and something failed.
    """
    path, held = _take(f"rondo-{hashlib.sha256(identity.encode()).hexdigest()[:16]}")
    try:
        yield path
    except BaseException as error:
        if isinstance(error, Exception) and not path.is_dir():
            raise StorageAccessError(
                f"{path}, where this run kept its temporary files, was removed while it was at work: set TMPDIR to a "
                "directory that nobody cleans up, and resume the run"
            ) from error
        _leave_logs(path)
        raise
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(held)


@contextmanager
def held_directory(name: str) -> Iterator[Path]:
    """Makes a new local directory, removed at the end; first removes those of this name that killed processes left."""
    path, held = _take(name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _take(name: str) -> tuple[Path, int]:
    """Removes the directories that nobody holds, and makes a new one of this user's alone, with the lock on it."""
    place, prefix = Path(tempfile.gettempdir()), f"{name}-{os.getuid()}-"
    for left in place.glob(f"{prefix}*"):
        _remove_unheld(left)
    return _new_held(place, prefix)


def _leave_logs(path: Path) -> None:
    for left in path.iterdir() if path.is_dir() else ():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):  # logs are in it
        path.rmdir()


def _new_held(place: Path, prefix: str) -> tuple[Path, int]:
    """Makes a new directory and the lock on it, which ends with the process, however that ends."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        held = os.open(path, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        if path.exists():
            return path, held
        os.close(held)  # another process took it for one that was left, before it was locked


def _remove_unheld(path: Path) -> None:
    with suppress(OSError):  # held, another's, or gone by now
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(opened)
