"""Scheduled rounds: a Prefect deployment whose every run adds rounds to the same run of rondo."""

import asyncio
import signal
from datetime import timedelta
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Completed
from pydantic import ValidationError

from flows.commands import create_or_open, report
from flows.control import end_flow_run, held_back
from flows.display import Display
from flows.errors import InterruptedRunError
from flows.prefect_server import prefect_api
from flows.run import execute
from pipeline.config import Recipe
from pipeline.errors import ConfigError, RondoError
from storage.errors import StoreError
from storage.store import Store


@flow(name="rondo-schedule", flow_run_name="{run} scheduled")
async def add_rounds(recipe: Recipe, run: str, root: str, rounds: int) -> State[Any] | None:
    """Adds rounds to a run, which the first scheduled run creates.

    Args:
        recipe: the recipe; that of the run, where it exists.
        run: name of the run.
        root: directory or URI of the store.
        rounds: how many rounds to add.
    """
    # Ctrl-C is for the schedule, which then ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = Store.open(root)
    existing = create_or_open(store, run, recipe)
    goal = max(len(existing.rounds()) - 1, 0) + rounds
    with Display() as display:
        if paused := held_back(existing):
            display.say(paused)
            return Completed(name="Skipped", message=paused)
        if existing.pause is not None and existing.session is not None:  # it is this very flow run that goes on
            goal = existing.session.meta["rounds"]
        try:
            await execute(store, existing, recipe, goal, display, take_over=False)
        except InterruptedRunError as stopped:
            display.say(str(stopped))
            return await end_flow_run(stopped)
        except (RondoError, StoreError) as error:
            display.say(f"error: {error}")
            raise
        display.say(f"run '{run}' has {goal} rounds; report: {report(run, root)}")
    return None


def check_cron(expression: str) -> None:
    """Refuses what Prefect would not take as a cron expression.

    Raises:
        ConfigError: it is none.
    """
    try:
        CronSchedule(cron=expression)
    except ValidationError:
        raise ConfigError(
            f"'{expression}' is no cron expression: give minute, hour, day, month and weekday, such as '0 3 * * *'"
        ) from None


def serve_rounds(recipe: Recipe, run: str, root: str, rounds: int, *, cron: str | None, interval: int | None) -> None:
    """Creates the deployment and waits for its runs, one at a time, until it is interrupted."""
    asyncio.run(_serve(recipe, run, root, rounds, cron, interval))


async def _serve(recipe: Recipe, run: str, root: str, rounds: int, cron: str | None, interval: int | None) -> None:
    from prefect.runner import Runner

    async with prefect_api(scheduling=True) as url:
        runner = Runner(name=f"rondo-{run}", limit=1)
        await runner.aadd_flow(
            add_rounds,
            name=run,
            cron=cron,
            interval=timedelta(seconds=interval) if interval else None,
            parameters={"recipe": recipe.model_dump(mode="json"), "run": run, "root": root, "rounds": rounds},
            concurrency_limit=1,
        )
        when = f"cron '{cron}'" if cron else f"every {interval} s"
        Display().say(
            f"run '{run}' gets {rounds} more rounds by {when}; Prefect's API is {url}; Ctrl-C ends the schedule"
        )
        # A service manager's SIGTERM ends the schedule as Ctrl-C does: Prefect's own handler would not wait for it.
        runner.handle_sigterm = lambda *_: signal.raise_signal(signal.SIGINT)  # type: ignore[method-assign]
        await runner.start()
