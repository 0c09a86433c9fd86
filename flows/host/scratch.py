"""Where a run keeps local copies of what lies in a bucket, and its workers their temporary files."""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import StorageAccessError


@contextmanager
def scratch_directory(root: str, run: str) -> Iterator[Path]:
    """An empty local directory, removed at the end; if the run fails, the logs in it stay, for people to read.

    A run has the same one each time, so that what a killed process left is removed by the next one.

    Raises:
        StorageAccessError: the name is taken by someone else.
    """
    digest = hashlib.sha256(f"{root}\0{run}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"rondo-{os.getuid()}-{digest}"
    if not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StorageAccessError(f"{path} is not this user's alone: remove it, or set TMPDIR to another directory")
    try:
        yield path
    except BaseException:
        for left in path.iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):  # logs are in it
            path.rmdir()
        raise
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def held_directory(name: str) -> Iterator[Path]:
    """A new local directory, removed at the end; those of this name that killed processes left are removed first."""
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{name}-{os.getuid()}-*"):
        _remove_unheld(left)
    path, held = _new_held(place, f"{name}-{os.getuid()}-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _new_held(place: Path, prefix: str) -> tuple[Path, int]:
    """A new directory and the lock on it, which ends with the process, however that ends."""
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
