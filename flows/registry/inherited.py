"""Rounds that a fork has of its parent: they were trained and judged as the parent's recipe says, not the fork's."""

from storage.errors import RunNotFoundError
from storage.log.forebears import forebears
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import parent_of


def inherited(run: Run) -> list[int]:
    """Returns the finished rounds that a run has of its parent, ascending; none if it is no fork."""
    parent = parent_of(run.header)
    return [number for number in run.finished if parent is not None and number <= parent[1]]


def first_judges(run: Run) -> dict[int, str]:
    """Returns the judge of the reward of each inherited round, which a fork may hear no longer."""
    judges = {number: run.round_entry(number).meta.get("judge") for number in inherited(run)}
    return {number: judge for number, judge in judges.items() if isinstance(judge, str)}


def trainer(store: Store, run: Run, round: int) -> Run | None:
    """Returns the run that trained a round: it, or what it was forked from; None if that run is gone.

    A run that was made anew under the name of one that is gone has other rounds, and counts as gone.

    Raises:
        CorruptEntryError: by what their headers say, one of them was forked from itself.
    """
    try:
        for other in forebears(store, run):
            parent = parent_of(other.header)
            if round in run.finished and (round not in other.finished or _policy(other, round) != _policy(run, round)):
                return None
            if parent is None or round > parent[1]:
                return other
    except RunNotFoundError:
        pass
    return None


def _policy(run: Run, round: int) -> object:
    return run.round_entry(round).meta.get("policy")
