"""What the commands do, apart from printing. Prefect and the report are imported only by what needs them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.host.devices import check_devices
from flows.host.loopback import check_proxies
from flows.host.progress import Display
from flows.host.signals import orderly_end
from flows.host.text import counted
from flows.monitors.tracking import check_tracking
from flows.registry.catalog import ended_by_patience, ended_early, existing_store, run_at_round
from flows.registry.head import start_of
from flows.registry.recipes import check_judge_files, check_new_run, differences, parse_recipe
from flows.registry.resume import check_goal, create_or_open, header, recipe_of, recipe_to_resume, unread_states
from flows.registry.resume_check import check_inputs, open_to_go_on, weights_of_next_round
from flows.registry.round_summary import RoundSummary, summaries
from flows.run.check_judges import check_judge_policies
from flows.run.fork_history import import_parent_rounds
from flows.run.given_fork import FIXED, given_header, import_given_rounds, judged_recipe, weights_of_given_rounds
from flows.run.judge_check import checking_judges
from flows.run.preflight import preflight
from pipeline.errors import ConfigError, DataError, JudgeError, UnsupportedModelError
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store
from storage.retention.prune import create_fork, delete_run

_FIXED_IN_FORKS = ("policy", "prompts", "evaluation.prompts")


@dataclass(frozen=True)
class Finished:
    """What a command that runs rounds has to say at its end."""

    run: str
    rounds: list[RoundSummary]
    message: str
    report: str | None


def start(
    recipe: Recipe,
    name: str | None,
    root: str,
    *,
    resume: bool,
    display: Display,
) -> Finished:
    """Starts a run from a recipe.

    Raises:
        ConfigError: the recipe cannot be run here, or the run exists with another one.
        RunExistsError: the run exists, and ``resume`` was not asked for.
    """
    with display.doing("looking for what the recipe needs"):  # for a GPU, torch is imported
        check_tracking(recipe.tracking)
        check_devices(recipe)
        _check_notifications(recipe)
    store = Store.open(root)
    name, goal = name or recipe.name, recipe.rounds
    if resume:
        run, recipe = create_or_open(store, name, recipe)
        return _bring_to(store, run, recipe, _unless_ended(run, goal), display)
    check_new_run(recipe)
    run = store.create_run(name, header(recipe))
    try:
        return _bring_to(store, run, recipe, goal, display)
    except (ConfigError, DataError, JudgeError, UnsupportedModelError):
        _free_name(store, name, display)
        raise


def _free_name(store: Store, name: str, display: Display) -> None:
    """Deletes a run that has not got past its checks: once the fault is mended, the same command starts it."""
    run = store.run(name)
    if not run.unfinished() and run.last_round is None:
        delete_run(store, name)
        display.say(f"nothing was made, and the name '{name}' is free again")


def resume(
    name: str, rounds: int | None, root: str, changes: Sequence[str], *, take_over: bool, display: Display
) -> Finished:
    """Continues a run, up to its recipe's rounds or to as many as are asked for.

    Raises:
        ConfigError: a change is of the description, or of what decides the results.
    """
    store = existing_store(root)
    run = open_to_go_on(store, name)
    own = recipe_of(run)
    given = parse_recipe(own.model_dump(mode="json"), changes, files=False) if changes else own
    if given.description != own.description:
        raise ConfigError(
            f"run '{name}' keeps the description that it was started with: leave out description={given.description!r}"
        )
    goal = rounds or (_unless_ended(run, _goal(run)) if given.rounds == own.rounds else given.rounds)
    return _bring_to(store, run, recipe_to_resume(run, given), goal, display, take_over=take_over)


def fork(
    source: str,
    name: str,
    rounds: int | None,
    root: str,
    changes: Sequence[str],
    *,
    judgments: str | None = None,
    run: bool,
    display: Display,
) -> Finished:
    """Creates a run whose rounds up to one of the parent's are the parent's own files, by reference.

    Args:
        judgments: the name under which these rounds were judged again. Then only their completions are the parent's,
            and the fork is trained on them anew, as they were judged.
        run: whether to go on and run the rounds that are missing.

    Raises:
        ConfigError: the round is not finished, or the change is one that only a new run can make.
    """
    store = existing_store(root)
    parent, number = run_at_round(store, source)
    before, more = recipe_of(parent), [*changes, *([f"rounds={rounds}"] if rounds else [])]
    given: dict[str, Any] = {}
    fixed_fields: tuple[str, ...] = _FIXED_IN_FORKS
    if judgments is None:
        recipe = parse_recipe(before.model_dump(mode="json"), more, files=False)
    else:
        recipe = judged_recipe(parent, number, judgments, more)
        given, fixed_fields, number = given_header(parent, number, judgments), (*_FIXED_IN_FORKS, *FIXED), 0
    check_judge_files(recipe)  # its policy and prompts are in the store
    fixed = [change for change in differences(before, recipe) if change.startswith(fixed_fields)]
    if fixed and judgments is not None:
        raise ConfigError(
            f"the completions that were judged are of the parent's prompts and shards: a fork of them cannot change "
            f"{'; '.join(fixed)}"
        )
    if fixed:
        raise ConfigError(
            f"a fork shares its parent's initial policy and prompts, and cannot change {'; '.join(fixed)}: start a new "
            "run instead, with policy.source=pretrained and the checkpoint's directory as policy.path"
        )
    _check_adapter(before, recipe)
    check_new_run(recipe)
    check_judge_policies(recipe, name, number + 1)
    if run:
        check_devices(recipe)
    unread = unread_states(recipe)
    check_inputs(store, parent, number, recipe.staleness, unread)
    needed = weights_of_next_round(parent, number, recipe.staleness, unread)
    if given:
        needed += weights_of_given_rounds(parent, given["given"]["round"], recipe.staleness)
    child = create_fork(store, parent, number, name, header(recipe) | given, needed)
    if run:
        return _bring_to(store, child, recipe, recipe.rounds, display)
    with child.writer() as writer:
        import_parent_rounds(store, child, writer)
        import_given_rounds(store, child, writer, recipe, display.say)
    add = "" if recipe.rounds > number else f" --rounds {number + 1}"
    begins = f"run '{name}' begins with {parent.name}@{number}"
    if judgments is not None:
        begins += f", and has its completions, judged by '{judgments}', for rounds 1 to {given['given']['round']}"
    message = f"{begins}; this runs its rounds: rondo resume {name}{add}"
    if (start := start_of(parent, number + 1)) != number:
        message = f"round {number} failed its gate, so that the next one starts from round {start}; {message}"
    return Finished(name, summaries(child.rounds()), message, None)


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
        from flows.report.report import newest_report

        if run.pause is not None:
            with run.writer(take_over, ends_pause=True):
                pass
        more = f"'rondo resume {run.name} --rounds N' adds more"
        message = ended_early(run, rounds) or f"run '{run.name}' is finished: it has {counted(done, 'round')}; {more}"
        return Finished(run.name, summaries(run.rounds()), message, newest_report(store, run))
    check_goal(run, recipe, rounds)
    check_proxies()
    check_tracking(recipe.tracking)
    check_devices(recipe)
    after = f", going on after round {done}" if done >= 0 else ""
    display.say(f"run '{run.name}' in {store.root}: {counted(rounds, 'round')}{after}")
    with display.doing("looking at judges, model, disk and prompts"), checking_judges(recipe) as judges:
        trial = preflight(store, run, recipe, rounds, display.say)
        judges.wait()
    # What takes seconds to import comes after the first line: Prefect, and the charts of the report.
    with display.doing("loading Prefect"):
        import flows.prefect_api  # noqa: F401  before Prefect
        from flows.report.report import report
        from flows.run.execute import execute

    with orderly_end(f"interrupted: what is committed stays, and 'rondo resume {run.name}' goes on"):
        asyncio.run(execute(store, run, recipe, rounds, display, take_over, trial=trial))
        run.refresh()
        message = ended_early(run, rounds) or f"run '{run.name}' has {counted(rounds, 'round')}"
        with display.doing("writing the report"):
            return Finished(run.name, summaries(run.rounds()), message, report(run.name, store.root))


def _goal(run: Run) -> int:
    """Returns how many rounds a run is to have: its recipe's, or more if its last session was asked for more."""
    asked: int = run.session.meta.get("rounds", 0) if run.session is not None else 0
    return max(recipe_of(run).rounds, asked)


def _unless_ended(run: Run, goal: int) -> int:
    """Returns the rounds that a run is brought to: no more, if patience has ended it and nobody asks for more."""
    return len(run.finished) - 1 if ended_by_patience(run) and goal <= recipe_of(run).rounds else goal


def _check_notifications(recipe: Recipe) -> None:
    """Raises ConfigError, before there is a run, if a block that the recipe names cannot send."""
    if recipe.notifications.blocks:
        import flows.prefect_api  # noqa: F401  before Prefect
        from flows.monitors.notifications import open_notifier

        asyncio.run(open_notifier(recipe.notifications, Display()))


def _check_adapter(before: Recipe, after: Recipe) -> None:
    """Refuses a change of the adapter, unless the fork begins one or merges its parent's for good.

    Raises:
        ConfigError: the change is another one, or the optimizer's moments are carried over it.
    """
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
