"""Rows of the store that are not held in memory, read for the one prompt or completion that a page shows."""

from collections.abc import Collection, Mapping
from typing import Any

from flows.view.site import OpenRun
from flows.view.tables import KINDS
from pipeline.errors import ConfigError
from storage.errors import DroppedFileError
from storage.queries.sql import Source, ask


def prefix_of(kind: str) -> str:
    """Returns how the names of the stages begin that hold completions of a kind.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind '{kind}' of completions: give {', '.join(KINDS)}")
    return KINDS[kind]


def has(opened: OpenRun, stage: str, round: int) -> bool:
    """Says whether a round has the table of a stage; one that was removed on purpose it has no longer."""
    files = opened.run.files(round, stage)
    try:
        opened.run.check_kept(files)
    except DroppedFileError:
        return False
    return bool(files)


def rows_of(
    opened: OpenRun, sql: str, stages: Collection[str], round: int, parameters: Mapping[str, Any], *, also: str = ""
) -> list[dict[str, Any]]:
    """Returns what a statement finds in the tables of a round; nothing if the round lacks one of them.

    Args:
        stages: the tables of the round that the statement names.
        also: a table of round 0 that it names beside them.
    """
    sources = [Source(stage, {round}) for stage in stages] + ([Source(also, {0})] if also else [])
    if not all(has(opened, source.stage, *(source.rounds or ())) for source in sources):
        return []
    rows: list[dict[str, Any]] = ask(opened.store, opened.run, sql, sources, parameters).to_pylist()
    return rows
