"""The runs under a root: which there are, how far each is, and which round ``RUN@ROUND`` names."""

from pathlib import Path
from typing import Any

from flows.registry.resume import recipe_of
from flows.registry.round_summary import RoundSummary, summaries
from pipeline.errors import ConfigError
from storage.errors import CorruptEntryError
from storage.log.run import Run
from storage.log.store import Store

DEFAULT_ROOT = "runs"


def existing_store(root: str) -> Store:
    """The store under a root that is there: to look at a misspelt one must not create it."""
    if "://" not in root and not Path(root).is_dir():
        raise ConfigError(f"there is no root '{root}': give the one that the run was started with, as --root")
    return Store.open(root)


def run_at_round(store: Store, source: str) -> tuple[Run, int]:
    """The run and the finished round that RUN@ROUND names; ConfigError if it names none."""
    name, at, text = source.rpartition("@")
    if not at or not text.isdecimal():
        raise ConfigError(f"'{source}' is not RUN@ROUND: give a run and one of its rounds, such as demo@3")
    run, number = store.run(name, intact_part=True), int(text)
    done = len(run.rounds())
    if number >= done:
        have = f"it has rounds 0 to {done - 1}" if done else "it has none yet"
        raise ConfigError(f"round {number} of run '{name}' is not finished: {have}")
    return run, number


def list_runs(root: str) -> list[dict[str, Any]]:
    """A row for each run under a root."""
    store = existing_store(root)
    rows = []
    for name in store.run_names():
        try:
            existing = store.run(name)
        except CorruptEntryError:  # 'rondo verify' says more
            unknown = dict.fromkeys(("recipe", "parent", "rounds", "reward"))
            rows.append({"run": name, **unknown, "state": "damaged"})
            continue
        recipe, last = recipe_of(existing), existing.last_round
        done = last.meta["round"] if last else 0
        rows.append({
            "run": name,
            "recipe": recipe.name,
            "parent": "{run}@{round}".format(**existing.header["parent"]) if existing.header.get("parent") else None,
            "rounds": f"{done}/{max(done, recipe.rounds)}",  # schedules add to those of the recipe
            "reward": last.meta["reward"] if last else None,
            "state": state_of(existing.state, paused=existing.pause is not None, finished=done >= recipe.rounds),
        })  # fmt: skip
    return rows


def state_of(state: str, *, paused: bool, finished: bool) -> str:
    """A run's state for people: running, paused, finished or stopped.

    Args:
        state: what its log says, see ``storage.log.run.Run.state``.
        paused: whether schedules leave it alone.
        finished: whether it has the rounds of its recipe.
    """
    if state != "stopped":
        return state
    if paused:
        return "paused"
    return "finished" if finished else "stopped"


def list_rounds(name: str, root: str) -> list[RoundSummary]:
    """The finished rounds of a run."""
    return summaries(existing_store(root).run(name).rounds())
