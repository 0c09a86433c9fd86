"""A round's policy as a local directory, outside of a running run."""

from pathlib import Path

from flows.session import is_adapter
from storage.checkpoints import local_directory
from storage.run import Run
from storage.store import Store


def local_policy(store: Store, run: Run, round: int, scratch: Path) -> Path:
    """The whole checkpoint of a finished round; an adapter is merged with its base, in ``scratch``.

    Raises:
        ReleasedFileError: its files were removed on purpose.
        DamagedFileError: they are not what was committed.
    """
    checkpoints = [run.entries(number, "checkpoint")[-1].files for number in range(round, -1, -1)]
    policy = local_directory(store, checkpoints[0], scratch / "checkpoints")
    if not is_adapter(checkpoints[0]):
        return policy
    from pipeline.lora import merge

    base = next(files for files in checkpoints if not is_adapter(files))
    return merge(local_directory(store, base, scratch / "checkpoints"), policy, scratch / "merged")
