"""A directory that a command writes for its user: there as a whole, or absent."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError
from storage.objects.durable import clear_errors

Owned = Callable[[Path], bool]
"""Says whether a directory that is not empty is the command's own work, and has nothing else in it."""
_FILE_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".html")


def _not_ours(_directory: Path) -> bool:
    return False


def check_new(to: Path, owned: Owned = _not_ours) -> Path:
    """Returns the absolute path of a directory that can be made; an empty one may be there already.

    Args:
        owned: one that it says yes to may be there as well.

    Raises:
        ConfigError: there is a file at ``to``, or a directory that is not empty, or it is named as a file of data.
    """
    to = to.expanduser().resolve()
    if to.suffix in _FILE_ENDINGS:
        raise ConfigError(f"'{to}' would be a directory, which holds the data and a card: leave '{to.suffix}' out")
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not owned(to))):
        raise ConfigError(f"'{to}' is already there, and not an empty directory: give a new one")
    return to


@contextmanager
def new_directory(to: Path, owned: Owned = _not_ours) -> Iterator[Path]:
    """Yields a directory to write into, which is renamed to ``to`` at the end of the block; it is removed on failure.

    Args:
        owned: a directory that it says yes to is replaced.

    Raises:
        ConfigError: there is a file at ``to``, or a directory that is not empty.
        StorageFullError, StorageAccessError: it could not be written.
    """
    to = check_new(to, owned)
    staged, before = (to.with_name(f".{to.name}-{uuid.uuid4().hex}") for _ in range(2))
    with clear_errors(to):
        try:
            staged.mkdir(parents=True)
            yield staged
            check_new(to, owned)
            if to.exists():
                os.replace(to, before)
            os.replace(staged, to)
        finally:
            if before.exists() and not to.exists():
                os.replace(before, to)
            shutil.rmtree(staged, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)
