"""Serves a deployment of scheduled rounds from this process, until it is interrupted."""

import asyncio
import signal

from prefect.runner import Runner
from prefect.schedules import Schedule

from flows.host.progress import Display
from flows.host.text import counted
from flows.prefect_api.server import prefect_api
from flows.schedule.deployments import check_name, ensure_limits, parameters, set_form
from flows.schedule.scheduled_rounds import add_rounds
from flows.schedule.times import describe
from pipeline.recipe import Recipe


def serve_rounds(recipe: Recipe, run: str, root: str, rounds: int, schedule: Schedule) -> None:
    """Creates the deployment and waits for its runs, one at a time, until it is interrupted."""
    asyncio.run(_serve(recipe, run, root, rounds, schedule))


async def _serve(recipe: Recipe, run: str, root: str, rounds: int, schedule: Schedule) -> None:
    say = Display().say
    async with prefect_api(say, scheduling=True) as url:
        await check_name(run, root)
        await ensure_limits(recipe, run, root)
        runner = Runner(name=f"rondo-{run}", limit=1)
        deployment = await add_rounds.ato_deployment(
            name=run,
            schedule=schedule,
            parameters=parameters(recipe, run, root, rounds),
            enforce_parameter_schema=True,
        )
        set_form(deployment, exists=True)
        # Given as None, they replace the pool of an earlier 'rondo deploy', whose worker would start the runs.
        deployment.work_pool_name = deployment.work_queue_name = None
        await runner.aadd_deployment(deployment)
        say(
            f"run '{run}' gets {counted(rounds, 'more round')} {describe(schedule)}; Prefect's API is "
            f"{url}; Ctrl-C ends the schedule"
        )
        # A service manager's SIGTERM ends the schedule as Ctrl-C does: Prefect's own handler would not wait for it.
        runner.handle_sigterm = lambda *_: signal.raise_signal(signal.SIGINT)  # type: ignore[method-assign]
        await runner.start()
