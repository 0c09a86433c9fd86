"""The runs under a root, forks below what they were forked from; and several of them over one another."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.registry.catalog import ended_by_patience, state_of, waits_for_people
from flows.registry.recipes import flatten
from flows.registry.round_summary import RoundSummary, start_among
from flows.report.charts import MOST_CURVES, Axes, curves
from flows.report.data import points_of
from flows.report.sections import Figure
from flows.view.rendering import Page
from flows.view.site import OpenRun, Site, UnreadableRunError
from pipeline.errors import ConfigError
from storage.errors import CorruptEntryError, RunNotFoundError
from storage.log.run import Run
from storage.log.tombstones import parent_of

_CURVES = {
    "Held-out reward": ("reward", "Mean score of the judge on held-out prompts, at temperature 1.", Axes()),
    "KL to round 0": ("kl_initial", "In nats per sequence.", Axes(unit="nats per sequence", reference=0.0)),
    "Tokens per completion": ("length", "Of held-out completions.", Axes(unit="tokens")),
    "Win rate against round 0": (
        "win_rate_initial",
        "Share of held-out prompts whose completion scores higher than that of round 0; ties count half.",
        Axes(percent=True, reference=0.5),
    ),
}  # fmt: skip
_SHORT = 120
"""Letters of a field's value in the table of differences."""


@dataclass(frozen=True)
class _Row:
    name: str
    depth: int
    recipe: str
    parent: str | None
    state: str
    waits: int | None
    done: int
    goal: int
    rounds: Sequence[RoundSummary]

    @property
    def state_class(self) -> str:
        return self.state.partition(" ")[0]

    @property
    def last(self) -> RoundSummary | None:
        return self.rounds[-1] if self.rounds else None

    @property
    def refused(self) -> int:
        """Counts the rounds that failed their gate."""
        return sum(summary.gate is not None and not summary.gate.passed for summary in self.rounds)

    @property
    def good(self) -> int | None:
        """Returns the last good round, if the newest one failed its gate."""
        if self.last is None or self.last.gate is None or self.last.gate.passed:
            return None
        return start_among(self.rounds, self.last.round)

    @property
    def rewards(self) -> list[float | None]:
        return [summary.reward for summary in self.rounds]

    @property
    def divergences(self) -> list[float | None]:
        return [summary.kl_initial for summary in self.rounds]

    @property
    def lengths(self) -> list[float | None]:
        return [summary.length for summary in self.rounds]

    @property
    def alarms(self) -> int:
        return sum(len(summary.alarms) for summary in self.rounds)


def page(site: Site) -> Page:
    """Lists all runs."""
    rows = {}
    for name in site.store.run_names():
        try:
            rows[name] = _row(site.run(name))
        except RunNotFoundError:  # it was deleted since
            continue
        except CorruptEntryError:  # 'rondo verify' says more
            rows[name] = _odd(name, "damaged")
        except (UnreadableRunError, KeyError, TypeError, AttributeError):  # its header has something else there
            rows[name] = _odd(name, "unreadable")
    return Page("runs.html.j2", "Runs", {"runs": list(_tree(rows)), "root": site.store.root})


def compare(site: Site, names: Sequence[str]) -> Page:
    """Draws the curves of several runs over one another, and says what their recipes differ in.

    Raises:
        ConfigError: fewer than two runs, or more than there are colours.
    """
    if not 2 <= len(names) <= MOST_CURVES:
        raise ConfigError(f"{len(names)} runs are ticked: tick two or three, for there are {MOST_CURVES} colours")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"run '{twice}' is ticked more than once: tick two or three different runs")
    opened = [site.run(name) for name in names]
    figures = []
    for title, (metric, caption, axes) in _CURVES.items():
        points = [{**point, "curve": run.name} for run in opened for point in points_of(run.rounds, {run.name: metric})]
        if points:
            figures.append(Figure(title, caption, curves(title, points, axes)))
    values = {"runs": list(names), "figures": figures, "differences": _differences(opened)}
    return Page("compare.html.j2", " and ".join(names), values)


def state(run: Run, *, done: int, goal: int) -> str:
    """Returns a run's state as people are told it; dead if its writer was killed."""
    waiting = waits_for_people(run) is not None
    paused = run.pause is not None
    finished = done >= goal or ended_by_patience(run)
    return "dead" if run.died else state_of(run.state, paused=paused, finished=finished, waiting=waiting)


def _odd(name: str, state: str) -> _Row:
    """Returns the row of a run that nothing can be said of; its page says why."""
    return _Row(name, 0, "", None, state, None, 0, 0, [])


def _row(opened: OpenRun) -> _Row:
    header, rounds = opened.run.header, opened.rounds
    parent, done = parent_of(header), rounds[-1].round if rounds else 0
    recipe: Mapping[str, Any] = header["recipe"]
    return _Row(
        name=opened.name,
        depth=0,
        recipe=recipe["name"],
        parent=f"{parent[0]}@{parent[1]}" if parent else None,
        state=state(opened.run, done=done, goal=recipe["rounds"]),
        waits=waits_for_people(opened.run),
        done=done,
        goal=max(done, recipe["rounds"]),
        rounds=rounds,
    )


def _tree(rows: Mapping[str, _Row]) -> Iterator[_Row]:
    """Yields the runs, each followed by its forks; once, also if headers that somebody made go round in a circle."""
    left = dict(rows)

    def with_forks(row: _Row, depth: int) -> Iterator[_Row]:
        if left.pop(row.name, None) is None:
            return
        yield _Row(**{**row.__dict__, "depth": min(depth, 4)})
        for other in rows.values():
            if other.parent is not None and other.parent.partition("@")[0] == row.name:
                yield from with_forks(other, depth + 1)

    first = [row for row in rows.values() if row.parent is None or row.parent.partition("@")[0] not in rows]
    for row in (*first, *rows.values()):
        yield from with_forks(row, 0)


def _differences(opened: Sequence[OpenRun]) -> dict[str, list[str]]:
    recipes = [flatten(run.recipe.model_dump(mode="json")) for run in opened]
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    found = {}
    for name in names:
        values = [json.dumps(recipe[name], ensure_ascii=False) if name in recipe else "–" for recipe in recipes]
        if len(set(values)) > 1:
            found[name] = [value if len(value) <= _SHORT else f"{value[:_SHORT]}…" for value in values]
    return found
