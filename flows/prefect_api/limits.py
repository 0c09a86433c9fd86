"""Prefect's concurrency limits: scheduled runs that would meet wait for each other.

The writer's lease of the store decides who may write a run; a limit only makes the second run wait when the lease
would refuse it. Slots are leased from the server. If their holder is killed, they are free again at the end of the
lease. If the server is away for longer than that, the run loses its slot and goes on with its work.

So the lease of a run's name is as short as Prefect allows: another run that gets the slot too early finds the run at
work and leaves it alone. The lease of GPUs is longer, as nothing else keeps two runs from meeting on them. (A
deployment's own limit would end a run that loses its slot. It also sends those that wait to the server again and again,
which keeps SQLite busy.)

One scheduled run that waits stands for all that come due meanwhile: if rounds take longer than the schedule's interval,
they would add up without end.
"""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError, ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled

from flows.errors import ServerError
from flows.host.progress import Display
from pipeline.recipe import Recipe
from pipeline.records import content_id

GPU_LIMIT = "rondo-gpu"
SKIPPED = "Skipped"
STOOD_FOR = "another scheduled run was due as well, and stands for this one"
LEASE_SECONDS = 60.0
GPU_LEASE_SECONDS = 120.0
ASK_SECONDS = 3.0


def run_limit(run: str, root: str) -> str:
    """Names the limit that lets one run of this name under this root go on at a time."""
    return f"rondo-run-{run}-{content_id(root)[:8]}"


def waiting_limit(run: str, root: str) -> str:
    """Names the limit that lets one scheduled run wait until another of this name is done."""
    return f"rondo-waiting-{run}-{content_id(root)[:8]}"


def needs_gpu(recipe: Recipe) -> bool:
    """Says whether any part of a run of this recipe is on a GPU."""
    return '"cuda' in recipe.devices.model_dump_json()


async def ensure_gpu_limit() -> None:
    """Creates the limit of runs that use GPUs, at one; if it is there, it stays as people have set it."""
    await _ensure(GPU_LIMIT)


async def ensure_run_limits(run: str, root: str) -> None:
    """Creates the limits of a run, if they are not there."""
    await _ensure(run_limit(run, root))
    await _ensure(waiting_limit(run, root))


@contextlib.asynccontextmanager
async def alone(run: str, root: str, recipe: Recipe, display: Display) -> AsyncIterator["Turn | None"]:
    """Waits until no other run of this name goes on, and if the recipe uses GPUs, until these are free.

    Yields:
        The run's turn; or at once None, if this is a scheduled run and another one waits already.

    Raises:
        ServerError: the recipe uses GPUs, and the server has no limit of them.
    """
    await ensure_run_limits(run, root)
    async with contextlib.AsyncExitStack() as stack:
        name = run_limit(run, root)
        if not await _taken(stack, name):
            async with _beside(waiting_limit(run, root)) as free:
                if free or not _scheduled():
                    _tell(display, f"waiting until no other run of '{run}' goes on")
                    while not await _taken(stack, name):
                        await asyncio.sleep(ASK_SECONDS)
                    free = True
            if not free:
                yield None
                return
        turn = Turn()
        if needs_gpu(recipe):
            await _require(GPU_LIMIT)
            await stack.enter_async_context(turn.with_gpus(display))
        yield turn


async def skip_overdue() -> None:
    """Cancels, as skipped, the other runs of this deployment that its schedule made due and that have not started."""
    this = _scheduled()
    if this is None:
        return
    which = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[this.deployment_id]),
        # By name: one that is resumed or tried again is of the same type, and stands for itself.
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled", "Late"])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.datetime.now(datetime.UTC)),
    )
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=which):
            if run.auto_scheduled:
                skipped: State[None] = Cancelled(name=SKIPPED, message=STOOD_FOR)
                await client.set_flow_run_state(run.id, skipped)


def _scheduled() -> FlowRun | None:
    """Returns the flow run that is going on, if a deployment's schedule has started it."""
    context = FlowRunContext.get()
    this = context.flow_run if context else None
    return this if this is not None and this.deployment_id is not None and this.auto_scheduled else None


def _tell(display: Display, text: str) -> None:
    display.say(text)
    with contextlib.suppress(MissingContextError):  # no flow run, whose log is shown in the UI
        get_run_logger().info(text)


async def _taken(stack: contextlib.AsyncExitStack, name: str) -> bool:
    """Takes a slot if one is free, and says whether one was.

    Whoever waits asks again. Prefect itself would wait in a thread, which outlives the cancellation of its process: the
    process would wait for the slot before it ends, and keep it from the others.
    """
    lease = GPU_LEASE_SECONDS if name == GPU_LIMIT else LEASE_SECONDS
    # Each limit by itself: asked for several at once, Prefect is content if one of them exists.
    slot = concurrency(name, strict=True, lease_duration=lease, max_retries=0, raise_on_lease_renewal_failure=False)
    try:
        await stack.enter_async_context(slot)
    except ConcurrencySlotAcquisitionError as error:
        cause = error.__cause__
        if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == httpx.codes.LOCKED:
            return False
        raise
    return True


class _Held:
    """A slot that a task of its own holds.

    Prefect wants a task to give back its slots in reverse order. This one may go before those that are taken after it,
    so it has a task of its own.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._leave = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None

    async def take(self) -> bool:
        """Takes the slot if it is free, and says whether it was."""
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._leave.clear()
        self._holding = asyncio.create_task(self._hold(taken))
        await asyncio.wait((taken, self._holding), return_when=asyncio.FIRST_COMPLETED)
        if not taken.done():
            await self._holding  # it failed
        return taken.result()

    async def release(self) -> None:
        """Gives the slot back, if it is held. If the server is away then, the run goes on all the same."""
        self._leave.set()
        if self._holding is not None:
            await asyncio.gather(self._holding, return_exceptions=True)

    async def _hold(self, taken: asyncio.Future[bool]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            has = await _taken(stack, self._name)
            taken.set_result(has)
            if has:
                await self._leave.wait()


@contextlib.asynccontextmanager
async def _beside(name: str) -> AsyncIterator[bool]:
    """Holds a slot during the block if one is free, and yields whether one was."""
    held = _Held(name)
    try:
        yield await held.take()
    finally:
        await held.release()


class Turn:
    """A run's turn to work, in which it may hold the GPUs."""

    def __init__(self) -> None:
        self._gpus: _Held | None = None

    @contextlib.asynccontextmanager
    async def without_gpus(self, display: Display) -> AsyncIterator[None]:
        """Gives the GPUs to others during the block, if this run holds them, and waits for them after it."""
        held = self._gpus
        if held is None:
            yield
            return
        await held.release()
        yield
        await _take_gpus(held, display)

    @contextlib.asynccontextmanager
    async def with_gpus(self, display: Display) -> AsyncIterator[None]:
        """Waits for the GPUs, and holds them during the block."""
        self._gpus = held = _Held(GPU_LIMIT)
        try:
            await _take_gpus(held, display)
            yield
        finally:
            await held.release()


async def _take_gpus(held: _Held, display: Display) -> None:
    if not await held.take():
        _tell(display, "waiting for the GPUs")
        while not await held.take():
            await asyncio.sleep(ASK_SECONDS)


async def _require(name: str) -> None:
    async with get_client() as client:
        try:
            await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            raise ServerError(
                f"the server has no concurrency limit '{name}', without which runs would meet on its GPUs: create it "
                f"with 'rondo up' or 'rondo deploy', or 'prefect gcl create {name} --limit 1'"
            ) from None


async def _ensure(name: str) -> None:
    async with get_client() as client:
        try:
            await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with contextlib.suppress(ObjectAlreadyExists):  # another process was faster
                await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
