"""What the pages stand on: the store, and the runs that were opened, each with its tables in memory."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

from flows.registry.resume import recipe_of
from flows.registry.round_summary import RoundSummary, summaries
from flows.report.data import optimizer_steps, sampled_scores
from flows.report.sections import Section, sections
from flows.report.timeline import timeline
from flows.view.tables import run_tables
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.memory import MemoryTables

_MOST_OPEN = 4
"""Runs whose tables stay in memory; the one that was not looked at for longest goes first."""


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run that pages look into.

    Attributes:
        store: where it lies.
        run: the run, as its log was at the last request.
    """

    store: Store
    run: Run

    @property
    def name(self) -> str:
        return self.run.name

    @cached_property
    def recipe(self) -> Recipe:
        return recipe_of(self.run)

    @cached_property
    def _tables(self) -> MemoryTables:
        return run_tables(self.store, self.run, self.recipe.judge_names)

    @property
    def tables(self) -> MemoryTables:
        """Returns its tables, with what was committed until now."""
        self._tables.refresh()
        return self._tables

    @property
    def rounds(self) -> list[RoundSummary]:
        """Returns its finished rounds."""
        return summaries(self.run.rounds())

    @property
    def begun(self) -> list[int]:
        """Returns the rounds that have committed anything, finished or not."""
        return sorted({*self.run.finished, *(entry.round for entry in self.run.unfinished())})

    @property
    def sections(self) -> list[Section]:
        """Returns the report's charts of its finished rounds; they change when a round is finished."""
        rounds = self.rounds
        if not rounds:
            return []
        known = self.__dict__.get("_sections")
        if known is None or known[0] != len(rounds):
            times = timeline(self.run, [summary.round for summary in rounds[-1:]])
            scores, steps = (read(self.store, self.run, rounds) for read in (sampled_scores, optimizer_steps))
            known = self.__dict__["_sections"] = len(rounds), sections(rounds, scores, steps, times)
        return known[1]

    def close(self) -> None:
        """Lets go of its tables."""
        if "_tables" in self.__dict__:
            self._tables.close()


class Site:
    """The runs under a root, for the pages; threads may share it.

    Attributes:
        store: the store of the root.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._open: OrderedDict[str, OpenRun] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, name: str) -> OpenRun:
        """Opens a run as it is now.

        Raises:
            RunNotFoundError: there is no such run.
        """
        with self._lock:
            opened = self._open.get(name)
            if opened is None:
                opened = OpenRun(self.store, self.store.run(name, intact_part=True))
            self._open[name] = opened
            self._open.move_to_end(name)
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        opened.run.refresh()
        return opened

    def close(self) -> None:
        """Lets go of all runs."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
