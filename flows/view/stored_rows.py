"""Rows of the store that are not held in memory, read for the one prompt or completion that a page shows."""

from collections.abc import Sequence
from typing import Any

from flows.view.site import OpenRun
from flows.view.tables import KINDS, PROMPT_STAGES
from pipeline.errors import ConfigError
from storage.errors import DamagedFileError, DroppedFileError
from storage.log.manifest import FileRef
from storage.queries import round_query
from storage.tables.shards import read_table

Rows = list[dict[str, Any]]


def prefix_of(kind: str) -> str:
    """Returns how the names of the stages begin that hold completions of a kind.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind '{kind}' of completions: give {', '.join(KINDS)}")
    return KINDS[kind]


def rows_of(opened: OpenRun, round: int, stage: str, prompt: str, columns: Sequence[str] | None = None) -> Rows:
    """Returns the rows of a prompt in the table of a round's stage; none if the round has no such table.

    Args:
        columns: the columns to return, of those that there are; all of them by default.

    Raises:
        DamagedFileError: the rows are in a damaged file, or may be.
    """
    if not _has(opened, round, stage):
        return []
    files = opened.run.files(round, stage)
    try:
        rows = round_query.matching(opened.store, files, "prompt_id", prompt, columns)
    except DamagedFileError:
        return _intact_rows(opened, files, prompt, columns)
    found: Rows = rows.to_pylist()
    return found


def prompt_rows(opened: OpenRun, prompt: str, columns: Sequence[str] | None = None) -> Rows:
    """Returns the rows of a prompt among the run's, or else the gate's; see `rows_of`."""
    places = [(stage, entry.round) for stage in PROMPT_STAGES for entry in opened.run.entries(stage=stage)]
    return next((found for stage, round in places if (found := rows_of(opened, round, stage, prompt, columns))), [])


def _intact_rows(opened: OpenRun, files: Sequence[FileRef], prompt: str, columns: Sequence[str] | None) -> Rows:
    """Reads files one by one, and notes those that are damaged.

    Raises:
        DamagedFileError: a file is damaged, and the others have no such rows: they may be its.
    """
    found: Rows = []
    damage: DamagedFileError | None = None
    for file in files:
        try:
            found += round_query.matching(opened.store, [file], "prompt_id", prompt, columns).to_pylist()
        except DamagedFileError as error:
            _note(opened, file, error)
            damage = error
    if damage is not None and not found:
        raise damage
    return found


def rows_beside(opened: OpenRun, round: int, stage: str, prompt: str, columns: Sequence[str]) -> Rows:
    """Returns what `rows_of` does of a table that a page can do without; none if a file is damaged, which is noted."""
    try:
        return rows_of(opened, round, stage, prompt, columns)
    except DamagedFileError:
        return []


def table_of(opened: OpenRun, round: int, stage: str, columns: Sequence[str] | None = None) -> Rows | None:
    """Returns all rows of a small table that a page can do without; none if the round has no such table.

    Args:
        columns: the columns to return; all of them by default.

    Returns:
        The rows; None if a file is damaged, which is noted: what is left of the table would not be all of it.
    """
    if not _has(opened, round, stage):
        return []
    found, intact = Rows(), True
    for file in opened.run.files(round, stage):
        try:
            found += read_table(opened.store, [file], columns).to_pylist()
        except DamagedFileError as error:
            _note(opened, file, error)
            intact = False
    return found if intact else None


def _note(opened: OpenRun, file: FileRef, error: DamagedFileError) -> None:
    """Notes a damaged file once, though what is wrong with it may be said in other words of other columns."""
    opened.note(file.path, f"{file.path}: {str(error).removeprefix(f'{file.path} ')}")


def _has(opened: OpenRun, round: int, stage: str) -> bool:
    """Says whether a round has the table of a stage; one that was removed on purpose it has no longer."""
    files = opened.run.files(round, stage)
    try:
        opened.run.check_kept(files)
    except DroppedFileError:
        return False
    return bool(files)
