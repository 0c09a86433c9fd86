"""Scheduled rounds: a Prefect flow whose every run adds rounds to the same run of rondo.

The flow run is that run, as people see it: they cancel, suspend and resume it on Prefect's page.
"""

import contextlib
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed
from pydantic import WithJsonSchema

from flows.errors import InterruptedRunError, WaitingForLabelsError
from flows.host.devices import check_devices
from flows.host.progress import Display
from flows.host.text import counted
from flows.prefect_api.flow_runs import API_ERRORS, awaiting_labels, end_flow_run, held_back, session_tag
from flows.prefect_api.limits import SKIPPED, STOOD_FOR, alone, skip_overdue
from flows.registry import DEFAULT_ROOT
from flows.registry.catalog import ended_early, gate_ends
from flows.registry.recipes import load_recipe, parse_recipe
from flows.registry.resume import check_goal, create_or_open, is_free, recipe_of
from flows.registry.resume_check import open_to_go_on
from flows.registry.shipped_files import shipped_recipes
from flows.report.report import report
from flows.run.execute import execute
from flows.schedule.form import as_changes, form, parameter_schema
from pipeline.errors import ConfigError, RondoError
from pipeline.recipe import Recipe
from storage.errors import StoreError
from storage.log.lease import Holder, describe_holder, holder
from storage.log.run import Run
from storage.log.store import Store

_FORM = form()
_RunField = Annotated[str, WithJsonSchema(_FORM["run"])]
_RoundsField = Annotated[int, WithJsonSchema(_FORM["rounds"])]
# Deployments of version 0.1.0 give the whole recipe.
_RecipeField = Annotated[str | dict[str, Any], WithJsonSchema(_FORM["recipe"])]
_OverridesField = Annotated[dict[str, Any], WithJsonSchema(_FORM["overrides"])]
_RootField = Annotated[str, WithJsonSchema(_FORM["root"])]


@flow(name="rondo-schedule", flow_run_name="{run}")
async def add_rounds(
    run: _RunField,
    rounds: _RoundsField = 1,
    recipe: _RecipeField = "",
    overrides: _OverridesField = {},  # noqa: B006  the form's default; nothing writes to it
    root: _RootField = DEFAULT_ROOT,
) -> "State[Any] | None":
    """Adds rounds to a run, once no other run of that name goes on and, if the recipe uses GPUs, these are free.

    Args:
        run: name of the run; the first flow run creates it
        rounds: rounds to add
        recipe: name of a recipe, or path of its file, for a run that does not exist yet
        overrides: fields of the recipe that are to differ, by their dotted names
        root: where runs are kept: a directory, or s3://, gs://, az://
    """
    # Ctrl-C is for the schedule, which then ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = Store.open(root)
    with Display() as display:
        try:
            wanted = wanted_recipe(store, run, recipe, overrides)
            if run in store.run_names():
                create_or_open(store, run, wanted)  # another recipe is refused before it has waited
            async with alone(run, store.root, wanted, display) as turn:
                if turn is None:
                    return Completed(name=SKIPPED, message=STOOD_FOR)
                await skip_overdue()
                existing, own = create_or_open(store, run, wanted)
                if isinstance(recipe, str):
                    await narrow_form(run)
                writer = await writer_of(existing)
                if left_alone := busy_message(existing) if writer == "alive" else _held_back(existing, own):
                    display.say(left_alone)
                    return Completed(name=SKIPPED, message=left_alone)
                target = max(len(existing.rounds()) - 1, 0) + rounds
                if existing.pause is not None and existing.session is not None:  # this very flow run goes on
                    target = existing.session.meta["rounds"]
                check_goal(existing, own, target)
                check_devices(own)
                await execute(store, existing, own, target, display, take_over=writer == "dead", turn=turn)
        except WaitingForLabelsError as waiting:  # the next flow run goes on, if they are there
            display.say(str(waiting))
            return awaiting_labels(str(waiting))
        except InterruptedRunError as stopped:
            display.say(str(stopped))
            return await end_flow_run(stopped)
        except (RondoError, StoreError) as error:
            display.say(f"error: {error}")
            raise
        existing.refresh()
        had = ended_early(existing, target) or f"run '{run}' has {counted(target, 'round')}"
        display.say(f"{had}; report: {report(run, root)}")
        return None


def wanted_recipe(store: Store, run: str, recipe: str | Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that a flow run asks for, with the overrides: the run's own, if it exists, else one by name.

    Raises:
        ConfigError: there is no such recipe, or an override is wrong.
    """
    changes = [f"{key}={json.dumps(value)}" for key, value in as_changes(overrides).items()]
    if isinstance(recipe, Mapping):
        return parse_recipe(recipe, changes)
    if run in store.run_names():
        own = recipe_of(open_to_go_on(store, run))
        return parse_recipe(own.model_dump(mode="json"), changes, files=False) if changes else own
    if recipe not in shipped_recipes() and not Path(recipe).is_file():
        raise ConfigError(
            f"there is no run '{run}' in {store.root}, and '{recipe}' is no recipe that rondo brings along: "
            f"'rondo deploy RECIPE --name {run} --root {store.root}' makes both anew"
        )
    return load_recipe(Path(recipe), changes)


async def narrow_form(run: str) -> None:
    """Has the form of this flow run's deployment refuse what its run, which exists now, can no longer take."""
    context = FlowRunContext.get()
    of = context.flow_run.deployment_id if context is not None and context.flow_run is not None else None
    if of is None:
        return
    async with get_client() as client:
        with contextlib.suppress(*API_ERRORS):  # the flow run refuses it as well
            deployment = await client.read_deployment(of)
            given = deployment.parameters
            narrow = parameter_schema(given, exists=True)
            if given["run"] == run and deployment.parameter_openapi_schema != narrow:
                kept = {key: value for key, value in given["overrides"].items() if is_free(key)}
                changed = DeploymentUpdate(parameter_openapi_schema=narrow, parameters={**given, "overrides": kept})
                await client.update_deployment(of, changed)


async def writer_of(run: Run) -> Holder:
    """Says whether the process that has the run open still works on it; "unknown" if neither store nor Prefect says.

    For a process on another host, which a container is too, Prefect says so by the flow run that has its session as a
    tag. If the process was killed, that flow run is Crashed once its signs of life are missed.
    """
    session = run.session
    if session is None or run.state == "stopped":
        return "dead"
    here = holder(session)
    if here != "unknown":
        return here
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[session_tag(session.session)]))
    async with get_client() as client:
        found = await client.read_flow_runs(flow_run_filter=tagged)
    if not found:
        return "unknown"
    return "dead" if all(each.state is not None and each.state.is_final() for each in found) else "alive"


def _held_back(run: Run, recipe: Recipe) -> str | None:
    """Says why schedules leave a run alone: it is paused, or its gate has ended it, until somebody resumes it."""
    ended = gate_ends(run) is not None and not run.unfinished()
    return held_back(run) or (ended_early(run, recipe.rounds) if ended else None)


def busy_message(run: Run) -> str:
    """Says why a scheduled run leaves a run alone that somebody executes."""
    by = f" by {describe_holder(run.session)}" if run.session is not None else ""
    return f"run '{run.name}' is executed{by}, which adds its rounds; this one adds none"
