"""A directory that a command writes for its user: there as a whole, or absent."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError
from storage.objects.durable import clear_errors


def check_new(to: Path) -> Path:
    """Returns the absolute path of a directory that can be made; an empty one may be there already.

    Raises:
        ConfigError: there is a file at ``to``, or a directory that is not empty.
    """
    to = to.expanduser().resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"'{to}' is already there, and not an empty directory: give a new one")
    return to


@contextmanager
def new_directory(to: Path) -> Iterator[Path]:
    """Yields a directory to write into, which is renamed to ``to`` at the end of the block; it is removed on failure.

    Raises:
        ConfigError: there is a file at ``to``, or a directory that is not empty.
        StorageFullError, StorageAccessError: it could not be written.
    """
    to = check_new(to)
    staged = to.with_name(f".{to.name}-{uuid.uuid4().hex}")
    with clear_errors(to):
        try:
            staged.mkdir(parents=True)
            yield staged
            os.replace(staged, to)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
