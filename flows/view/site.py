"""What the pages stand on: the store, its runs, and in memory the tables of those that were looked into last."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from pydantic import ValidationError

from flows.registry.inherited import first_judges, trainer
from flows.registry.resume import recipe_of
from flows.registry.round_summary import RoundSummary, summaries
from flows.report.data import optimizer_steps, sampled_scores
from flows.report.sections import Section, sections
from flows.report.timeline import timeline
from flows.view.tables import JudgeOrder, run_tables
from pipeline.errors import RondoError
from pipeline.judges.base import JudgeConfig
from pipeline.recipe import Recipe
from storage.errors import DamagedFileError
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.memory import AGAIN_SECONDS, MemoryTables

_MOST_TABLES = 4
"""Runs whose tables stay in memory; the one that was not looked into for longest goes first."""
_Found = TypeVar("_Found")


class UnreadableRunError(RondoError, ValueError):
    """A run whose recipe or metrics this version cannot read, as one of a newer version."""


class _HeldTables:
    """The tables in memory; threads may share it.

    Those that go are not closed, because a request may be at work on them: its end frees them.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[OpenRun, tuple[JudgeOrder, MemoryTables]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, opened: "OpenRun") -> MemoryTables:
        """Returns the tables of a run, which are new if they went, or if other judges come first by now."""
        order = opened.judge_order
        with self._lock:
            known, tables = self._held.get(opened, (None, None))
            if tables is None or known != order:
                tables = run_tables(opened.store, opened.run, order)
            self._held[opened] = order, tables
            self._held.move_to_end(opened)
            while len(self._held) > _MOST_TABLES:
                self._held.popitem(last=False)
        return tables

    def damaged(self, opened: "OpenRun") -> dict[str, str]:
        """Returns the files that the tables of a run lack, if it was looked into."""
        with self._lock:
            _, tables = self._held.get(opened, (None, None))
        return tables.damaged if tables is not None else {}

    def drop(self, opened: "OpenRun") -> None:
        """Lets go of the tables of a run."""
        with self._lock:
            self._held.pop(opened, None)

    def close(self) -> None:
        """Closes all, at the end."""
        with self._lock:
            while self._held:
                self._held.popitem()[1][1].close()


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run that pages look into.

    Attributes:
        store: where it lies.
        run: the run, as its log was at the last request.
        noted: what pages found damaged beside the tables, and left out: a sentence, and when, by what it is about.
    """

    store: Store
    run: Run
    _held: _HeldTables
    noted: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def state(self) -> str:
        """Returns what changes with each entry of the run's log, when people pause it, and when its writer is gone."""
        return json.dumps([self.run.head, self.run.state, self.run.pause is not None])

    @cached_property
    def recipe(self) -> Recipe:
        """Returns the recipe that it was started with; UnreadableRunError if it has none that can be read."""
        return _read(self.run, recipe_of)

    def recipe_of_round(self, round: int) -> Recipe | None:
        """Returns the recipe by which a round was made, of a parent if it is inherited; None if that run is gone."""
        run = trainer(self.store, self.run, round)
        return None if run is None else self.recipe if run is self.run else _read(run, recipe_of)

    def judges_of_round(self, round: int) -> dict[str, JudgeConfig]:
        """Returns the judges of a round, by name, the gate's last; none if its recipe is gone."""
        recipe = self.recipe_of_round(round)
        if recipe is None:
            return {}
        own = dict(zip(recipe.judge_names, recipe.judges, strict=True))
        return own | {judge.label: judge for judge in recipe.gate_judges if judge.label not in own}

    @property
    def judge_order(self) -> JudgeOrder:
        """Says which of several verdicts on a completion counts."""
        return JudgeOrder(self.recipe.judge_names, first_judges(self.run))

    @property
    def tables(self) -> MemoryTables:
        """Returns its tables, with what was committed until now."""
        tables = self._held.of(self)
        tables.refresh()
        return tables

    @property
    def damages(self) -> list[str]:
        """Says which damaged files are left out of what pages show, as far as they were read until now."""
        of_tables = (f"{path}: {reason}" for path, reason in self._held.damaged(self).items())
        lately = time.monotonic() - AGAIN_SECONDS  # before, it may have been mended since
        return sorted({*(sentence for sentence, since in self.noted.values() if since > lately), *of_tables})

    def note(self, about: str, sentence: str) -> None:
        """Notes that something is damaged, in the words that were found first."""
        first, _ = self.noted.get(about, (sentence, 0.0))
        self.noted[about] = (first, time.monotonic())

    @property
    def rounds(self) -> list[RoundSummary]:
        """Returns its finished rounds; UnreadableRunError if one has metrics that this version does not know."""
        return _read(self.run, lambda run: summaries(run.rounds()))

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
            scores, steps = (self._intact(read, rounds) for read in (sampled_scores, optimizer_steps))
            known = self.__dict__["_sections"] = len(rounds), sections(rounds, scores, steps, times)
        return known[1]

    def _intact(
        self, read: Callable[[Store, Run, Sequence[RoundSummary]], dict[int, _Found]], rounds: Sequence[RoundSummary]
    ) -> dict[int, _Found]:
        """Reads what charts show of these rounds; of the rounds whose files are damaged it is left out, and noted."""
        try:
            return read(self.store, self.run, rounds)
        except DamagedFileError:
            found: dict[int, _Found] = {}
            for summary in rounds:
                try:
                    found |= read(self.store, self.run, [summary])
                except DamagedFileError as error:
                    self.note(str(error), str(error))
            return found


class Site:
    """The runs under a root, for the pages; threads may share it.

    Attributes:
        store: the store of the root.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._open: dict[str, OpenRun] = {}
        self._held = _HeldTables()
        self._lock = threading.Lock()

    def run(self, name: str) -> OpenRun:
        """Opens a run as it is now.

        Raises:
            RunNotFoundError: there is no such run.
        """
        opened = self._open.get(name)
        if opened is None or not opened.run.is_current():
            opened = self._open_anew(name, opened)
        opened.run.refresh()
        return opened

    def damages(self, name: str | None) -> list[str]:
        """Says which damaged files are left out of the pages of a run, as far as they were read; see `OpenRun`."""
        opened = self._open.get(name) if name is not None else None
        return opened.damages if opened is not None else []

    def close(self) -> None:
        """Lets go of all tables."""
        self._held.close()

    def _open_anew(self, name: str, gone: OpenRun | None) -> OpenRun:
        """Opens a run for the first time, or in place of one of this name that is gone."""
        with self._lock:
            opened = self._open.get(name)
            if opened is not None and opened is not gone:  # another thread was faster
                return opened
            if opened is not None:
                self._held.drop(self._open.pop(name))
            opened = self._open[name] = OpenRun(self.store, self.store.run(name, intact_part=True), self._held)
            return opened


def _read(run: Run, read: Callable[[Run], _Found]) -> _Found:
    try:
        return read(run)
    except (KeyError, TypeError, ValidationError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else error
        raise UnreadableRunError(
            f"run '{run.name}' cannot be read by this version of rondo, because of {where}: it may be of a newer one, "
            "so open it with that, or ask 'rondo verify'"
        ) from error
