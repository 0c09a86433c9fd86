"""A run: prepare the initial policy once, then one round after another."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL

from flows.errors import ServerError
from flows.host.allotment import Allotment, report_allotment
from flows.host.progress import Display
from flows.host.scratch import scratch_directory
from flows.host.signals import EndedBySignals
from flows.host.text import counted
from flows.host.versions import software
from flows.monitors.monitors import Monitors
from flows.monitors.notifications import open_notifier
from flows.monitors.prefect_artifacts import Artifacts
from flows.monitors.tracking import open_tracker
from flows.prefect_api.control import PAUSE_SIGNAL, Control
from flows.prefect_api.limits import Turn
from flows.prefect_api.server import has_background_server, healthy, prefect_api
from flows.registry.catalog import ended_early
from flows.registry.first_facts import sampled_in
from flows.registry.head import head_of
from flows.registry.resume import report_changes, unread_states
from flows.registry.resume_check import check_inputs
from flows.round import round_steps
from flows.round.context import RoundContext, current_context, enter
from flows.round.policies import Policies
from flows.round.round import run_round
from flows.round.worker_set import WorkerSet, create_workers
from flows.run.check_judges import check_judge_policies
from flows.run.fork_history import import_parent_rounds
from flows.run.given_fork import import_given_rounds
from flows.workers.judge import JudgeWorker
from flows.workers.references import TrialPrompt
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store


# If results might be kept, Prefect would ask its server about that while it has SIGTERM for itself: such a signal would
# end the event loop, and not this flow.
@flow(name="rondo", flow_run_name="{run}", persist_result=False)
async def run_rounds(run: str, rounds: int) -> State[Any] | None:
    """Brings a run to this many rounds; those that are finished stay as they are."""
    return await _in_this_flow(current_context())


async def _in_this_flow(context: RoundContext) -> State[Any] | None:
    """Runs the missing rounds in the flow run that is going on: people cancel, suspend and resume that one."""
    return await context.control.in_order(_missing_rounds(context))


async def _missing_rounds(context: RoundContext) -> None:
    async with telling_end(context), context.monitors.artifacts.kept_up():
        # Judges that cannot be loaded, and prompts that cannot be used, say so here, before anything is paid for.
        if not context.judge_versions:
            await _load_judges(context)
        checked = await round_steps.check_prompts(context)
        if context.trial is None:
            await round_steps.try_judges(context, checked)
        await round_steps.check_adapters(context)
        await round_steps.prepare_policy(context)
        await round_steps.prepare_prompts(context)
        for number in range(len(context.run.rounds()), context.goal + 1):
            context.display.rounds(number, context.goal + 1)
            summary = await run_round(context, number)
            if summary.no_update is not None and context.recipe.preferences.on_none == "stop":
                break
            if summary.gate is not None and summary.gate.ends is not None:
                break
        else:
            context.display.rounds(context.goal + 1, context.goal + 1)


async def _load_judges(context: RoundContext) -> None:
    """Has the judges loaded, and tries them if there is a prompt to try them on.

    Raises:
        JudgeError: one cannot be loaded, or fails on whatever it is given.
    """
    async with context.display.waiting("loading the judges"):
        context.judge_versions = (await context.workers.judge.call(JudgeWorker.versions)).result
    if context.trial is not None:
        await round_steps.try_judges(context, context.trial)


async def execute(
    store: Store,
    run: Run,
    recipe: Recipe,
    rounds: int,
    display: Display,
    take_over: bool,
    turn: Turn | None = None,
    trial: TrialPrompt | None = None,
) -> None:
    """Opens the run for writing, starts workers and scheduler side by side, and runs the rounds that are missing.

    Within a flow, such as that of a schedule, the rounds belong to its flow run; a command gets a flow run of its own.

    Args:
        turn: the turn of a scheduled run, which may hold the GPUs.
        trial: a prompt to try the judges on at once; if it is None they are tried when the prompts are checked.
    """
    paused, changed = run.pause, report_changes(run, recipe, display.say)
    allotment = Allotment.of(recipe, sampled_in=sampled_in(store, run))
    before = run.session.meta.get("allotment") if run.session is not None else None
    report_allotment(allotment, recipe, before, display.say)
    made = {**software(), "rounds": rounds, "allotment": allotment.record()}
    made |= {"changes": changed} if changed else {}
    with contextlib.ExitStack() as opened:
        writer = opened.enter_context(run.writer(take_over, made, ends_pause=True))
        _be_patient(store, recipe, display, opened)
        control = Control(run, writer, paused, watched=has_background_server(), turn=turn, say=display.say)
        opened.enter_context(control.listening())
        scratch = opened.enter_context(scratch_directory(run.identity))
        logs = store.log_directory(run.name) or scratch
        notifier = await open_notifier(recipe.notifications, display)
        artifacts = Artifacts(run.name, display, _report_address(store, run.name), shown=control.watched)
        monitors = Monitors(artifacts, notifier)
        workers = create_workers(store, run, recipe, allotment, scratch, logs, display.say)
        policies = Policies(run, recipe)
        context = RoundContext(store, run, writer, recipe, workers, policies, display, control, monitors, rounds, trial)
        enter(context)
        import_parent_rounds(store, run, writer)
        import_given_rounds(store, run, writer, recipe, display.say)
        check_judge_policies(recipe, run.name, len(run.rounds()))
        async with display.waiting("reading what the next round starts from"):
            await asyncio.to_thread(check_inputs, store, run, unread=unread_states(recipe))
        monitors.tracker = open_tracker(recipe.tracking, run)
        async with _started(workers, display), contextlib.AsyncExitStack() as stack:
            stack.enter_context(monitors.tracker)
            if FlowRunContext.get() is not None:
                await _in_this_flow(context)
                return
            # A judge's mistake is seen before the scheduler and the trainer, which take seconds to import, are there.
            await _load_judges(context)
            async with display.waiting("starting Prefect and the workers"):
                await stack.enter_async_context(prefect_api(display.say))
            await _in_a_flow_of_its_own(context)


async def _in_a_flow_of_its_own(context: RoundContext) -> None:
    """Runs the missing rounds of a command.

    If the Prefect server goes away meanwhile, nothing is lost: the store has the rounds.

    Raises:
        ServerError: the server had gone before the flow began.
    """
    control, name = context.control, context.name
    gone = f"the Prefect server does not answer{{}}: 'rondo resume {name}' goes on"
    if not (control.watched or await asyncio.to_thread(healthy, PREFECT_API_URL.value())):  # Prefect tries for minutes
        raise ServerError(gone.format(""))
    with contextlib.ExitStack() as control.ending:
        try:
            with control.with_prefect():
                await run_rounds(name, context.goal)
        except httpx.HTTPError as error:
            if control.failure is not None:
                raise control.failure from None
            why = str(error) or type(error).__name__
            if not (control.ended or control.asked):
                raise ServerError(gone.format(f" ({why})")) from error
            control.untold = control.untold or why
        except (asyncio.CancelledError, TerminationSignal):
            if control.watched and not control.ended:
                control.untold = control.untold or "it was interrupted when the flow began"
            raise
        finally:
            if control.untold is not None:
                told = f"the Prefect server was not told of the end of run '{name}' ({control.untold})"
                page = ": its page may show that as running, or as crashed" if control.watched else ""
                context.display.say(told + page)


def _be_patient(store: Store, recipe: Recipe, display: Display, opened: contextlib.ExitStack) -> None:
    """Has the store wait for its backend as the recipe says, until the run is asked to end, or has failed."""
    asked = (signal.SIGINT, signal.SIGTERM, PAUSE_SIGNAL)
    waiting = EndedBySignals(asked, "interrupted while it waited for the store: what is committed stays")
    patience = store.objects.patience
    patience.seconds, patience.say, patience.waiting = recipe.store.patience_seconds, display.say, waiting

    def end(failed: type[BaseException] | None, *_: object) -> None:
        if failed is not None:  # the session's end still has to be written, if that is possible at once
            waiting.end()
            patience.seconds = 0

    opened.push(end)


def _report_address(store: Store, name: str) -> str:
    path = store.report_path(name)
    return path.absolute().as_uri() if path else f"{store.root}/{store.report_key(name)}"


@contextlib.asynccontextmanager
async def telling_end(context: RoundContext) -> AsyncIterator[None]:
    """Tells people how the block has ended, unless somebody has stopped it."""
    notifier, run = context.monitors.notifier, context.run
    try:
        yield
    except Exception as error:
        notifier.tell("failed", f"{run.name}: failed", f"Run '{run.name}' has failed: {error}")
        raise
    else:
        rounds = run.rounds()
        head = head_of(run) or 0
        text = f"Run '{run.name}' has {counted(len(rounds) - 1, 'round')}; its held-out reward is "
        text += f"{rounds[head].meta['reward']:.4f}{'' if head == len(rounds) - 1 else f' in round {head}'}."
        if early := ended_early(run, context.goal):
            text = f"{text} {early}"
        notifier.tell("finished", f"{run.name}: finished", text)
    finally:
        await notifier.sent()


@contextlib.asynccontextmanager
async def _started(workers: WorkerSet, display: Display) -> AsyncIterator[None]:
    """Starts the workers without waiting for them: the first call to each does that, and reports what went wrong."""
    starts = [asyncio.create_task(carrier.start()) for carrier in workers.carriers]
    try:
        yield
    finally:
        async with display.waiting("ending the workers"):
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await workers.stop()
