"""A round's policy as a local directory, outside of a running run."""

from collections.abc import Sequence
from pathlib import Path

from flows.registry.head import start_of
from storage.errors import NotCommittedError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.checkpoints import local_directory

_ADAPTER = "adapter_config.json"


def checkpoint_files(run: Run, round: int) -> tuple[FileRef, ...]:
    """Returns the files of a round's checkpoint; NotCommittedError if it has none."""
    commits = run.entries(round=round, stage="checkpoint")
    if not commits:
        raise NotCommittedError(f"round {round} of run '{run.name}' has no checkpoint")
    return commits[-1].files


def is_adapter(files: Sequence[FileRef]) -> bool:
    """Says whether a checkpoint is an adapter, which needs the whole checkpoint that it changes."""
    return any(file.name == _ADAPTER for file in files)


def base_of(run: Run, number: int) -> list[FileRef]:
    """Finds the whole checkpoint that a round's adapter changes: of the last one that it came from which has one."""
    while number > 0:
        number = start_of(run, number)
        if (files := run.files(number, "checkpoint")) and not is_adapter(files):
            return files
    return []


def local_policy(store: Store, run: Run, round: int, scratch: Path) -> Path:
    """Returns the directory of a finished round's whole checkpoint; an adapter is merged with its base in ``scratch``.

    Raises:
        NotCommittedError: the round has no checkpoint.
        DroppedFileError: its files were removed on purpose.
        DamagedFileError: they are not what was committed.
    """
    files = checkpoint_files(run, round)
    policy = local_directory(store, files, scratch / "checkpoints")
    if not is_adapter(files):
        return policy
    from pipeline.model.lora import merge

    return merge(local_directory(store, base_of(run, round), scratch / "checkpoints"), policy, scratch / "merged")
