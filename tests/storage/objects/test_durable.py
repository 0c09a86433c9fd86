"""What the operating system refuses, as the store says it."""

import errno
import os
from pathlib import Path

import pytest

from storage.errors import BackendError, InvalidNameError, MissingObjectError, StorageAccessError, StorageFullError
from storage.objects.durable import clear_errors, clear_write_errors, create

FULL, DENIED = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        *((number, StorageFullError, "no room left to write /data/x: free some space") for number in FULL),
        *((number, StorageAccessError, "cannot access /data/x: .*; check its permissions") for number in DENIED),
    ],
)
def test_a_full_disk_and_missing_permission_are_said_whoever_meets_them(
    number: int, error: type[Exception], words: str
) -> None:
    """Libraries in Rust give their own class of error, with the number in its message."""
    path = Path("/data/x")
    for clear in (clear_errors, clear_write_errors):
        with pytest.raises(error, match=words), clear(path):
            raise OSError(number, os.strerror(number))
    for message in (f"I/O error: {os.strerror(number)} (os error {number})", f"Io {{ code: {number}, kind: Other }}"):
        with pytest.raises(error, match=words), clear_write_errors(path):
            raise RuntimeError(message)


def test_other_errors_of_a_library_stay_as_they_are() -> None:
    for error in (RuntimeError("no number"), ValueError("os error 5"), OSError(errno.EIO, "input or output")):
        with pytest.raises(type(error)) as raised, clear_write_errors(Path("/data/x")):
            raise error
        assert raised.value is error
    with pytest.raises(BackendError, match="the file system failed at /data/x"), clear_errors("/data/x"):
        raise OSError(errno.EIO, "input or output")


def test_what_the_file_system_itself_says(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError), clear_errors("/dev/full"), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    with pytest.raises(MissingObjectError, match="there is no"), clear_errors(tmp_path / "x"):
        (tmp_path / "x").read_bytes()
    with pytest.raises(InvalidNameError, match="does not take a name as long as"):
        create(tmp_path / ("x" * 300), b"")
    assert not list(tmp_path.iterdir())


def test_nothing_stays_open(tmp_path: Path) -> None:
    """A run syncs thousands of files and directories."""
    before = os.listdir("/proc/self/fd")
    for number in range(20):
        assert create(tmp_path / "new" / f"{number}", b"x")
        assert not create(tmp_path / "new" / f"{number}", b"y")
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a file system in which nobody may create a file")
def test_where_nothing_may_be_created_the_reason_is_said() -> None:
    """And not that the temporary file, which could not be created either, is missing."""
    with pytest.raises(StorageAccessError, match="cannot access /sys/kernel/x"):
        create(Path("/sys/kernel/x"), b"")
