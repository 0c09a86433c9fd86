"""A directory that a command writes for its user: there as a whole, or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError
from storage.objects.durable import clear_errors


def check_new(to: Path) -> Path:
    """The absolute path of a directory that can be made.

    Raises:
        ConfigError: there is something at ``to`` already.
    """
    to = to.expanduser().resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"'{to}' is already there, and not an empty directory: give a new one")
    return to


@contextmanager
def new_directory(to: Path) -> Iterator[Path]:
    """A directory beside ``to`` to write into, which takes its name at the end of the block; gone if that fails.

    Raises:
        ConfigError: there is something at ``to`` already.
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
