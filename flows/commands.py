"""What the commands do, apart from printing. Prefect is imported only by those that run something."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from flows.adopt import adopt_rounds
from flows.devices import check_devices
from flows.display import Display
from flows.going_on import check_goal, create_or_open, going_on, header, recipe_of, unread_states
from flows.interruption import orderly_end
from flows.plain_text import counted
from flows.recipes import differences, load_recipe, parse_recipe
from flows.summary import RoundSummary, summaries
from flows.tracking import check_tracking
from pipeline.config import Recipe
from pipeline.errors import ConfigError
from storage import inspect
from storage.errors import CorruptEntryError
from storage.inputs import check_inputs, open_to_go_on, weights_of_next_round
from storage.retention import create_fork
from storage.run import Run
from storage.store import Store

_FIXED_IN_FORKS = ("policy", "prompts", "evaluation.prompts")


class Table(StrEnum):
    """The tables of a round that ``rondo show`` knows."""

    candidates = "candidates"
    judgments = "judgments"
    preferences = "preferences"
    replayed = "replayed"
    eval_candidates = "eval_candidates"
    eval_judgments = "eval_judgments"


@dataclass(frozen=True)
class Finished:
    """What a command that runs rounds leaves to say."""

    run: str
    rounds: list[RoundSummary]
    message: str
    report: str | None


def start(
    path: Path,
    name: str | None,
    rounds: int | None,
    root: str,
    changes: Sequence[str],
    *,
    resume: bool,
    display: Display,
) -> Finished:
    """Starts a run from a recipe.

    Raises:
        ConfigError: the recipe is wrong, or the run exists with another one.
        RunExistsError: the run exists, and ``resume`` was not asked for.
    """
    recipe = load_recipe(path, [*changes, *([f"rounds={rounds}"] if rounds else [])])
    check_tracking(recipe.tracking)
    check_devices(recipe)
    _check_notifications(recipe)
    store = Store.open(root)
    name, goal = name or recipe.name, recipe.rounds
    if resume:
        run, recipe = create_or_open(store, name, recipe)
    else:
        run = store.create_run(name, header(recipe))
    return _bring_to(store, run, recipe, goal, display)


def resume(
    name: str, rounds: int | None, root: str, changes: Sequence[str], *, take_over: bool, display: Display
) -> Finished:
    """Continues a run, up to its recipe's rounds or to as many as are asked for.

    Raises:
        ConfigError: a change is one of what comes out.
    """
    store = existing_store(root)
    run = open_to_go_on(store, name)
    own = recipe_of(run)
    given = parse_recipe(own.model_dump(mode="json"), changes) if changes else own
    if given.description != own.description:
        raise ConfigError(
            f"run '{name}' keeps the description that it was started with: leave out description={given.description!r}"
        )
    goal = rounds or (_goal(run) if given.rounds == own.rounds else given.rounds)
    return _bring_to(store, run, going_on(run, given), goal, display, take_over=take_over)


def fork(
    source: str, name: str, rounds: int | None, root: str, changes: Sequence[str], *, start: bool, display: Display
) -> Finished:
    """A new run whose rounds up to one of the parent's are the parent's own files, by reference.

    Raises:
        ConfigError: the round is not finished, or the change is one that only a new run can make.
    """
    store = existing_store(root)
    parent, number = run_at_round(store, source)
    before = recipe_of(parent)
    recipe = parse_recipe(before.model_dump(mode="json"), [*changes, *([f"rounds={rounds}"] if rounds else [])])
    fixed = [change for change in differences(before, recipe) if change.startswith(_FIXED_IN_FORKS)]
    if fixed:
        raise ConfigError(
            f"a fork shares its parent's initial policy and prompts, and cannot change {'; '.join(fixed)}: start a new "
            "run instead, with policy.source=pretrained and the checkpoint's directory as policy.path"
        )
    _check_adapter(before, recipe)
    if start:
        check_devices(recipe)
    unread = unread_states(recipe)
    check_inputs(store, parent, number, recipe.staleness, unread)
    needed = weights_of_next_round(parent, number, recipe.staleness, unread)
    child = create_fork(store, parent, number, name, header(recipe), needed)
    if not start:
        with child.writer() as writer:
            adopt_rounds(store, child, writer)
        return Finished(name, summaries(child.rounds()), f"'{name}' begins at {source}: rondo resume {name}", None)
    return _bring_to(store, child, recipe, recipe.rounds, display)


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
        state: what its log says, see ``storage.run.Run.state``.
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


def show(
    source: str,
    root: str,
    *,
    table: str,
    prompt: str | None,
    limit: int,
    where: str | None,
    columns: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Rows of a round's table, joined with what one wants to read beside them; all columns, or these."""
    store = existing_store(root)
    existing, number = run_at_round(store, source)
    # A round's own candidates have one judge; the held-out ones have several, and this one's scores are the reward.
    judge = existing.rounds()[number].meta["judge"] if table.startswith("eval_") else None
    found = inspect.query(
        store, existing, number, table=table, where=where, prompt=prompt, limit=limit, judge=judge, columns=columns
    )
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def export(source: str, root: str, to: Path) -> int:
    """Writes a round's preferences as a dataset; see ``flows/export.py``."""
    from flows.export import export_preferences

    store = existing_store(root)
    existing, number = run_at_round(store, source)
    return export_preferences(store, existing, number, to)


def report(name: str, root: str, picture: Path | None = None) -> str:
    """Writes a run's report, and its main curves as a picture where one is asked for; returns where the report is."""
    from flows.plots import summary_picture
    from flows.report import write_report

    store = existing_store(root)
    run = store.run(name)
    written = write_report(store, run)
    if picture is not None:
        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_text(summary_picture(summaries(run.rounds()), f"Run {name}"), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--picture '{picture}' cannot be written: {error.strerror}: give another path"
            ) from error
    return written


def _newest_report(store: Store, run: Run) -> str:
    """Where the report is; it is written where it is missing, or older than the last round, as after a SIGKILL."""
    where, last = store.report_path(run.name), run.last_round
    if where is None or last is None or not where.exists():
        return report(run.name, store.root)
    newest = where.stat().st_mtime >= datetime.fromisoformat(last.time).timestamp()
    return str(where) if newest else report(run.name, store.root)


def _bring_to(
    store: Store,
    run: Run,
    recipe: Recipe,
    rounds: int,
    display: Display,
    *,
    take_over: bool = False,
) -> Finished:
    done = len(run.rounds()) - 1
    if done >= rounds:
        if run.pause is not None:
            with run.writer(take_over, ends_pause=True):
                pass
        more = f"'rondo resume {run.name} --rounds N' adds more"
        message = f"run '{run.name}' is finished: it has {counted(done, 'round')}; {more}"
        return Finished(run.name, summaries(run.rounds()), message, _newest_report(store, run))
    check_goal(run, recipe, rounds)
    check_tracking(recipe.tracking)
    check_devices(recipe)
    import flows.prefect_settings  # noqa: F401  before Prefect
    from flows.run import execute

    after = f", going on after round {done}" if done >= 0 else ""
    display.say(f"run '{run.name}' in {store.root}: {counted(rounds, 'round')}{after}")
    with orderly_end(f"interrupted: what is committed stays, and 'rondo resume {run.name}' goes on"):
        asyncio.run(execute(store, run, recipe, rounds, display, take_over))
        run.refresh()
        message = f"run '{run.name}' has {counted(rounds, 'round')}"
        return Finished(run.name, summaries(run.rounds()), message, report(run.name, store.root))


def _goal(run: Run) -> int:
    """How many rounds a run is to have: its recipe's, or more where it was interrupted on the way to more."""
    asked: int = run.session.meta.get("rounds", 0) if run.session is not None else 0
    return max(recipe_of(run).rounds, asked)


def _check_notifications(recipe: Recipe) -> None:
    """Raises ConfigError, before there is a run, where a block that the recipe names cannot send."""
    if recipe.notifications.blocks:
        import flows.prefect_settings  # noqa: F401  before Prefect
        from flows.notify import open_notifier

        asyncio.run(open_notifier(recipe.notifications, Display()))


def _check_adapter(before: Recipe, after: Recipe) -> None:
    """What a fork may change of an adapter: to begin with one, and to merge it for good."""
    old, new = before.update.lora, after.update.lora
    if old == new:
        return
    if old is not None and new is not None:
        raise ConfigError(
            "a fork cannot change update.lora, for its adapters would not fit: keep it, or set update.lora=null to go "
            "on with the merged weights"
        )
    if after.update.optimizer_state == "carried":
        raise ConfigError(
            "update.optimizer_state is carried, and the moments of an adapter are not those of whole weights: add "
            "--set update.optimizer_state=reset"
        )


def existing_store(root: str) -> Store:
    """The store under a root that is there: to look at a misspelt one must not create it."""
    if "://" not in root and not Path(root).is_dir():
        raise ConfigError(f"there is no root '{root}': give the one that the run was started with, as --root")
    return Store.open(root)


def run_at_round(store: Store, source: str) -> tuple[Run, int]:
    """The run and the finished round that RUN@ROUND names; ConfigError where it names none."""
    name, at, text = source.rpartition("@")
    if not at or not text.isdecimal():
        raise ConfigError(f"'{source}' is not RUN@ROUND: give a run and one of its rounds, such as demo@3")
    run, number = store.run(name, intact_part=True), int(text)
    done = len(run.rounds())
    if number >= done:
        have = f"it has rounds 0 to {done - 1}" if done else "it has none yet"
        raise ConfigError(f"round {number} of run '{name}' is not finished: {have}")
    return run, number
