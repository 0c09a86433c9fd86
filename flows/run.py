"""A run: prepare the initial policy once, then one round after another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prefect import flow

from flows import stages
from flows.adopt import adopt_rounds
from flows.display import Display
from flows.judge_policies import check_judge_policies
from flows.prefect_server import prefect_api
from flows.round import run_round
from flows.scratch import scratch_directory
from flows.session import Session, current, enter
from flows.tracking import open_tracker
from flows.versions import software
from pipeline.config import Recipe
from storage.inputs import check_inputs
from storage.run import Run
from storage.store import Store


@flow(name="rondo", flow_run_name="{run}")
async def run_rounds(run: str, rounds: int) -> None:
    """Brings a run to this many rounds; those that are finished stay as they are."""
    session = current()
    session.rounds = rounds
    # Before anything is paid for: judges that cannot be loaded say so here.
    session.judge_versions = await session.judge.call("versions")
    await stages.prepare_policy(run)
    await stages.prepare_prompts(run)
    for number in range(len(session.run.rounds()), rounds + 1):
        session.display.rounds(number, rounds + 1)
        await run_round(run, number)


async def execute(store: Store, run: Run, recipe: Recipe, rounds: int, display: Display, take_over: bool) -> None:
    """Opens the run for writing, starts workers and scheduler side by side, and runs the rounds that are missing."""
    with (
        run.writer(take_over=take_over, meta=software()) as writer,
        scratch_directory(store.root, run.name) as scratch,
    ):
        logs = store.log_directory(run.name) or scratch
        session = Session.create(store, run, writer, recipe, display, scratch, logs)
        enter(session)
        adopt_rounds(store, run, writer)
        check_judge_policies(recipe, run.name, len(run.rounds()))
        async with display.waiting("reading what the next round starts from"):
            await asyncio.to_thread(check_inputs, store, run)
        session.tracker = open_tracker(recipe.tracking, run)
        async with _workers(session), contextlib.AsyncExitStack() as stack:
            stack.enter_context(session.tracker)
            async with display.waiting("starting Prefect and the workers"):
                await stack.enter_async_context(prefect_api(display.say))
            await run_rounds(run.name, rounds)


@contextlib.asynccontextmanager
async def _workers(session: Session) -> AsyncIterator[None]:
    """Starts the workers without waiting for them: the first call to each does that, and reports what went wrong."""
    starts = [asyncio.create_task(worker.start()) for worker in session.workers]
    try:
        yield
    finally:
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        await session.stop()
