"""The saved states of an update in progress: an interrupted update goes on from the newest one."""

from collections.abc import Sequence
from typing import Any

from pipeline.records import content_id
from storage.log.manifest import Entry, FileRef, Key
from storage.log.run import Run
from storage.log.writer import Writer

STATE_FORMAT = 2
"""The format of a saved state. A state of another format stays in the store, and its steps are taken again."""


def interrupted_update(run: Run, round: int, inputs: str) -> Entry | None:
    """Finds the newest state that an interrupted update of these inputs left; None if there is none."""
    dropped = run.dropped
    states = run.entries(round=round, stage="update_state")
    mine = (entry for entry in states if (entry.meta.get("of"), entry.meta.get("format")) == (inputs, STATE_FORMAT))
    kept = (entry for entry in mine if not any(file.path in dropped for file in entry.files))
    return max(kept, key=lambda entry: entry.number, default=None)


def commit_state(
    run: Run, writer: Writer, round: int, inputs: str, step: int, files: Sequence[FileRef], given: dict[str, Any]
) -> None:
    """Commits the state after a step, with what the update had been ``given``; the state before is dropped.

    What it had been given is part of its key: with other preferences, such as when people change their minds, the state
    after the same number of steps is another one.
    """
    before = interrupted_update(run, round, inputs)
    key = content_id([inputs, STATE_FORMAT, given])
    meta = {"of": inputs, "format": STATE_FORMAT, **given}
    kept = writer.commit(Key(round, "update_state", step, key), files, meta)
    if before is not None and kept.number > before.number:
        writer.drop(before.files, "superseded by those of a later step")


def drop_states(run: Run, writer: Writer, round: int) -> None:
    """Drops the states of an update that is done."""
    states = run.entries(round=round, stage="update_state")
    if states:
        files = [file for entry in states for file in entry.files]
        writer.drop(files, "superseded by the round's checkpoint")
