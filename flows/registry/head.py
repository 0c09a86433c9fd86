"""Which round a round starts from: the newest before it whose policy passed the gate.

A round that failed its gate is kept and marked, and the head of the run does not move to it. All that asks for "the
policy of the round before" asks here. This module imports no pydantic: ``rondo runs`` is to answer at once.
"""

from typing import Any

from storage.log.run import Run


def failed_gate(meta: dict[str, Any]) -> bool:
    """Says whether the summary of a finished round says that its policy failed the gate."""
    gate = meta.get("gate")
    return gate is not None and not gate["passed"]


def start_of(run: Run, round: int) -> int:
    """Returns the round that a round starts from; round 0's is itself. A round that is not finished has not failed."""
    done = len(run.finished)
    for number in range(round - 1, 0, -1):
        if number >= done or not failed_gate(run.round_entry(number).meta):
            return number
    return 0


def head_of(run: Run) -> int | None:
    """Returns the round that the next one would start from, the last good one; None if no round is finished."""
    finished = run.finished
    return start_of(run, finished[-1] + 1) if finished else None


def sampler_of(run: Run, round: int, staleness: int) -> int:
    """Returns the round whose policy samples a round's completions: its start, or with staleness that one's start."""
    start = start_of(run, round)
    return start_of(run, start) if staleness else start
