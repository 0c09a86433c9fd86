"""A run: prepare the initial policy once, then one round after another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from flows.host.progress import Display
from flows.host.scratch import scratch_directory
from flows.host.text import counted
from flows.host.versions import software
from flows.monitors.notifications import open_notifier
from flows.monitors.tracking import open_tracker
from flows.prefect_api.control import Control
from flows.prefect_api.server import has_background_server, prefect_api
from flows.registry.resume import report_changes, unread_states
from flows.registry.resume_check import check_inputs
from flows.round import round_steps
from flows.round.context import Session, current, enter
from flows.round.round import run_round
from flows.run.check_judges import check_judge_policies
from flows.run.fork_history import import_parent_rounds
from pipeline.config import Recipe
from storage.log.run import Run
from storage.log.store import Store


async def tell_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook of the run's flow: tells how it has ended."""
    session, name = current(), flow_run.name
    if session.control.waits_for_people:
        pass  # they have been told that labels are missing
    elif state.is_completed():
        done = len(session.run.rounds()) - 1
        reward = session.run.rounds()[-1].meta["reward"]
        text = f"Run '{name}' has {counted(done, 'round')}; its held-out reward is {reward:.4f}."
        session.notifier.tell("finished", f"{name}: finished", text)
    else:
        session.notifier.tell("failed", f"{name}: failed", f"Run '{name}' has failed: {state.message}")
    await session.notifier.sent()


@flow(name="rondo", flow_run_name="{run}", on_completion=[tell_end], on_failure=[tell_end], on_crashed=[tell_end])
async def run_rounds(run: str, rounds: int) -> State[Any] | None:
    """Brings a run to this many rounds; those that are finished stay as they are."""
    return await current().control.in_order(_missing_rounds(run, rounds))


async def _missing_rounds(run: str, rounds: int) -> None:
    session = current()
    session.rounds = rounds
    async with session.artifacts.kept_up(session.control.flow_run):
        # Before anything is paid for: judges that cannot be loaded say so here.
        session.judge_versions = await session.judge.call("versions")
        await round_steps.prepare_policy(run)
        await round_steps.prepare_prompts(run)
        for number in range(len(session.run.rounds()), rounds + 1):
            session.display.rounds(number, rounds + 1)
            await run_round(run, number)
        session.display.rounds(rounds + 1, rounds + 1)


async def execute(store: Store, run: Run, recipe: Recipe, rounds: int, display: Display, take_over: bool) -> None:
    """Opens the run for writing, starts workers and scheduler side by side, and runs the rounds that are missing."""
    paused, changed = run.pause, report_changes(run, recipe, display.say)
    made = {**software(), "rounds": rounds, **({"changes": changed} if changed else {})}
    with contextlib.ExitStack() as opened:
        writer = opened.enter_context(run.writer(take_over, made, ends_pause=True))
        control = Control(run, writer, paused, watched=has_background_server())
        opened.enter_context(control.listening())
        scratch = opened.enter_context(scratch_directory(store.root, run.name))
        logs = store.log_directory(run.name) or scratch
        notifier = await open_notifier(recipe.notifications, display)
        session = Session.create(store, run, writer, recipe, display, scratch, logs, control, notifier)
        enter(session)
        import_parent_rounds(store, run, writer)
        check_judge_policies(recipe, run.name, len(run.rounds()))
        async with display.waiting("reading what the next round starts from"):
            await asyncio.to_thread(check_inputs, store, run, unread=unread_states(recipe))
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
