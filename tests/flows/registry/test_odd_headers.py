"""Headers of runs that somebody made by hand, or damaged: no list hides other runs, and nothing goes on for ever."""

from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from flows.analysis.capacity import _calibrated
from flows.cli.lineage_tree import lineage_tree
from flows.registry.catalog import list_runs
from flows.registry.first_facts import sampled_in
from flows.registry.inherited import trainer
from flows.view.pages import runs
from flows.view.site import Site
from storage.errors import CorruptEntryError
from storage.log.forebears import forebears
from storage.log.store import Store
from storage.queries.lineage import lineage
from support.finished_run import finished_run, small_recipe

CIRCLE = {"a": "c", "b": "a", "c": "b", "itself": "itself"}
"""By run, its parent: each of the first three comes from itself, and the last at once."""
NAMES = ["a", "b", "c", "good", "itself", "late"]

pytestmark = pytest.mark.timeout(120)  # for what goes on for ever


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A circle, a fork of one of its runs, and a good run. All have rounds that by their headers are inherited."""
    store = Store.open(tmp_path)
    recipe = small_recipe(sampling={"prompts_per_round": 3, "candidates": 4, "precision": "auto"})
    for name, parent in {**CIRCLE, "late": "b"}.items():
        finished_run(store, name, rounds=1, recipe=recipe, parent={"run": parent, "round": 1})
    finished_run(store, "good", rounds=1)
    return store


def test_a_run_without_a_recipe_does_not_hide_the_others(store: Store) -> None:
    for name, header in {
        "bare": {"format": 1},
        "listed": {"format": 1, "recipe": ["a"]},
        "nameless": {"format": 1, "recipe": {"rounds": 1}},
        "orphan": {"format": 1, "recipe": {"name": "x", "rounds": 1}, "parent": "good"},
    }.items():
        store.create_run(name, header)
    rows = {row["run"]: row for row in list_runs(store.root)}
    assert sorted(rows) == sorted([*NAMES, "bare", "listed", "nameless", "orphan"])
    assert rows["good"]["state"] == "stopped"
    assert rows["bare"] == {
        "run": "bare", "recipe": None, "parent": None, "rounds": None, "reward": None,
        "state": "unreadable: nothing is recorded as 'recipe'",
    }  # fmt: skip
    assert rows["nameless"]["state"] == "unreadable: nothing is recorded as 'name'"
    assert rows["listed"]["state"] == "unreadable: its header is not one that rondo writes"
    assert rows["orphan"]["state"] == "damaged"


def test_lists_have_the_runs_of_a_circle_once(store: Store) -> None:
    assert [row["run"] for row in list_runs(store.root)] == NAMES
    assert sorted(row.name for row in runs.page(Site(store)).values["runs"]) == NAMES
    family = lineage(store, weights="checkpoint")
    assert sorted(run["run"] for run in family) == NAMES
    assert sorted(run["run"] for run in lineage(store, "late", weights="checkpoint")) == ["a", "b", "c", "late"]
    said = Console(file=StringIO(), width=200)
    said.print(lineage_tree(family, "root"))
    drawn = cast(StringIO, said.file).getvalue()
    assert [drawn.count(f" {name}  ") for name in NAMES] == [1] * len(NAMES), drawn


@pytest.mark.parametrize("name", ["a", "itself", "late"])
def test_what_follows_a_circle_says_so(store: Store, name: str) -> None:
    run = store.run(name)
    asks: list[Any] = [
        lambda: list(forebears(store, run)),
        lambda: trainer(store, run, 1),
        lambda: sampled_in(store, run),
        lambda: _calibrated(cast(Any, None), cast(Any, None), f"{name}@1", store.root),
    ]
    for ask in asks:
        with pytest.raises(CorruptEntryError, match=r"header of run '\w+' names '\w+' as its parent, which comes"):
            ask()


def test_forebears_are_yielded_nearest_first(tmp_path: Path) -> None:
    store, parent = Store.open(tmp_path), None
    for name in ("first", "second", "third"):
        finished_run(store, name, rounds=1, **({"parent": {"run": parent, "round": 0}} if parent else {}))
        parent = name
    assert [run.name for run in forebears(store, store.run("third"))] == ["third", "second", "first"]
