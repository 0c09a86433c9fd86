"""What can go wrong in the store.

::

    StoreError
    ├── InvalidNameError (ValueError)        a name or path that the store does not accept
    ├── InvalidEntryError (ValueError)       a commit that cannot be recorded: meta that is no JSON, no files, ...
    ├── RoundFinishedError (ValueError)      a commit to a round that is already finished
    ├── RunExistsError (FileExistsError)     the run is already there
    ├── RunNotFoundError (LookupError)       no such run
    ├── NotCommittedError (LookupError)      no commit of that stage in that round
    ├── DroppedFileError (LookupError)       a file that was removed on purpose
    ├── RunBusyError (RuntimeError)          another process writes to the run
    ├── RunHasForksError (RuntimeError)      other runs name its files
    ├── CorruptEntryError (ValueError)       a log entry, snapshot or manifest is damaged
    ├── DamagedFileError (ValueError)        a data file is missing, or not the one that was committed
    ├── QueryError (ValueError)              a wrong SQL expression
    ├── UnsupportedStoreError (ValueError)   a root that the store cannot be kept on
    └── BackendError (OSError)               the backend failed; a write may or may not have taken place
        ├── StorageFullError                 no room
        ├── StorageAccessError               no permission, or read-only
        └── MissingObjectError               no object under that name

The store has no commands, and does not know what a stage means. Its callers complete some sentences with these, in the
two tables below.
"""

REMEDIES = {
    "go on": "open it",
    "try again": "try again",
    "clear": "delete it once more",
    "take over": "take the run over",
    "verify": "verify that run",
}
"""How a remedy is said, by its action; ``{run}`` stands for the name of the run."""

STAGE_TITLES: dict[str, str] = {}
"""What people call the files of a stage, if that is not the stage's own name."""


def remedy(action: str, run: str = "") -> str:
    """Ends a sentence: says how to do this with the run."""
    return REMEDIES[action].format(run=run)


class StoreError(Exception):
    """Root of every error of this package."""


class InvalidNameError(StoreError, ValueError):
    """A run name, stage name or path that the store does not accept."""


class InvalidEntryError(StoreError, ValueError):
    """A commit that cannot be recorded as it was given."""


class RoundFinishedError(StoreError, ValueError):
    """A new commit to a round that is already finished."""


class RunExistsError(StoreError, FileExistsError):
    """A run of that name is already there."""


class RunNotFoundError(StoreError, LookupError):
    """No run has that name."""


class NotCommittedError(StoreError, LookupError):
    """Nothing was committed for that stage in that round."""


class DroppedFileError(StoreError, LookupError):
    """A file that was committed, and that its run has dropped since: its bytes were removed on purpose."""


class RunBusyError(StoreError, RuntimeError):
    """Another writer has the run, or has taken it over."""


class RunHasForksError(StoreError, RuntimeError):
    """A run that cannot be deleted: its forks name its files."""


class CorruptEntryError(StoreError, ValueError):
    """A log entry, snapshot or manifest is not what was written."""


class DamagedFileError(StoreError, ValueError):
    """A data file is missing, or its bytes are not the ones that were committed."""


class QueryError(StoreError, ValueError):
    """An SQL expression that cannot be run over the tables."""


class UnsupportedStoreError(StoreError, ValueError):
    """A root that the store cannot be kept on."""


class BackendError(StoreError, OSError):
    """The backend failed. If it failed in a write, the write may or may not have taken place."""


class StorageFullError(BackendError):
    """There is no room left."""


class StorageAccessError(BackendError):
    """The root is read-only, or access to it is denied."""


class MissingObjectError(BackendError):
    """There is no object under that name."""
