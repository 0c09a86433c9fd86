"""The recipe with which a run goes on: its own, but for the sections that say where, when and for whom it works."""

from collections.abc import Callable
from typing import Any

from flows.host.versions import packages
from flows.registry.recipes import check_new_run, differences, flatten
from flows.registry.resume_check import STATES, open_to_go_on
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store

HEADER_FORMAT = 1
FREE = ("devices", "cluster", "store", "mode", "tracking", "notifications")
"""The sections of a recipe that may differ from those that a run was started with, each time that it goes on."""


_OLD_DEFAULTS = {("update", "learning_rate"): 1e-4, ("devices", "cpu_threads"): 1}
"""What version 0.1.0 took for a field that a recipe leaves out, if this version takes something else."""


def header(recipe: Recipe) -> dict[str, Any]:
    """Returns what a run records of its origin."""
    recorded = recipe.model_dump(mode="json")
    return {"format": HEADER_FORMAT, "recipe": recorded, "packages": packages(), "parent": None}


def recipe_of(run: Run) -> Recipe:
    """Returns the recipe that a run was started with."""
    return Recipe.model_validate(run.header["recipe"])


def create_or_open(store: Store, name: str, recipe: Recipe) -> tuple[Run, Recipe]:
    """Returns the run of this name, which is created if there is none, and the recipe that it goes on with.

    Raises:
        ConfigError: it was started with a recipe that gives other results, or no run can be started with this one.
    """
    if name not in store.run_names():
        check_new_run(recipe)
        return store.create_run(name, header(recipe)), recipe
    run = open_to_go_on(store, name)
    return run, recipe_to_resume(run, recipe)


def recipe_to_resume(run: Run, given: Recipe) -> Recipe:
    """Returns the run's own recipe with the ``FREE`` sections of the one that is given.

    Raises:
        ConfigError: the two differ in something else.
    """
    own = recipe_of(run)
    given = _as_begun(own, given)
    if other := [change for change in differences(own, given) if not is_free(change)]:
        raise ConfigError(
            f"run '{run.name}' was started with another recipe ({'; '.join(other)}), and of a run that goes on only "
            f"{', '.join(FREE)} may change: give the same recipe, or change it in a fork: rondo fork {run.name}@ROUND "
            "--name NEW --set KEY=VALUE"
        )
    # Both are valid, so this is too: only the number of rounds and the description are the run's own.
    return own.model_copy(update={section: getattr(given, section) for section in FREE})


def _as_begun(own: Recipe, given: Recipe) -> Recipe:
    """Returns the given recipe as it was read by the version that began the run, whose defaults may differ.

    The precision of an update that leaves it out depends on its device, which may change: it stays the run's own.
    """
    for (section, field), value in _OLD_DEFAULTS.items():
        part = getattr(given, section)
        if field not in part.model_fields_set and getattr(getattr(own, section), field) == value:
            given = given.model_copy(update={section: part.model_copy(update={field: value})})
    if "precision" not in given.update.model_fields_set:
        update = given.update.model_copy(update={"precision": own.update.precision})
        given = given.model_copy(update={"update": update})
    return given


def report_changes(run: Run, recipe: Recipe, say: Callable[[str], None]) -> list[str]:
    """Lists how the recipe that a run goes on with differs from the one that it began with, and says so in a line."""
    found = differences(recipe_of(run), recipe)
    if found:
        say(f"run '{run.name}' goes on otherwise than it began: {'; '.join(found)}")
    return found


def unread_states(recipe: Recipe) -> set[str]:
    """Returns the states that a round leaves beside its checkpoint and that the next one does not read."""
    read = {"optimizer": recipe.update.optimizer_state == "carried", "ema": recipe.update.reference == "ema"}
    return {stage for stage in STATES if not read[stage]}


def check_goal(run: Run, recipe: Recipe, rounds: int) -> None:
    """Refuses rounds after the end of a learning rate's schedule.

    Raises:
        ConfigError: the schedule is over the run as a whole, and ends before these rounds do.
    """
    if recipe.update.schedule_over == "run" and rounds > recipe.rounds:
        done = run.finished
        fork = f"fork it: rondo fork {run.name}@{done[-1]} --name NEW --rounds {rounds}" if done else "begin a new run"
        raise ConfigError(
            f"update.schedule_over is run, and its schedule ends with round {recipe.rounds}: to go on to round "
            f"{rounds}, {fork}"
        )


def is_free(field: str) -> bool:
    """Says whether a field, or a change as `differences` lists it, is in a section that may differ on resume."""
    return field.split(":")[0].split(".")[0] in FREE


def free_changes(run: Run, given: Recipe) -> dict[str, Any]:
    """Returns the fields of the ``FREE`` sections, by their dotted names, that differ from the run's own recipe."""
    own, other = (flatten(recipe.model_dump(mode="json")) for recipe in (recipe_of(run), given))
    return {key: value for key, value in other.items() if is_free(key) and own.get(key) != value}
