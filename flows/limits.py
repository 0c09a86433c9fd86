"""Prefect's concurrency limits: scheduled runs that would meet wait for each other.

The writer's lease of the store decides who may write a run; a limit only makes the second wait where the lease would
refuse it. Slots are leased from the server, and are free again after ``LEASE_SECONDS`` where their holder was killed.
A server that is away for longer takes the slot, and not the work: the run goes on.

A scheduled run that starts also stands for those that came due while it waited. Where rounds take longer than the
schedule's interval, these would add up without end, and a server with SQLite is busy with some hundreds of them.
"""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.concurrency.asyncio import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Cancelled, State

from flows.display import Display
from flows.errors import ServerError
from pipeline.config import Recipe
from pipeline.records import content_id

GPU_LIMIT = "rondo-gpu"
SKIPPED = "Skipped"
LEASE_SECONDS = 120.0
_PATIENCE_SECONDS = 2.0  # before it is worth a line


def run_limit(run: str, root: str) -> str:
    """Name of the limit that lets one run of this name under this root go on at a time."""
    return f"rondo-run-{run}-{content_id(root)[:8]}"


def needs_gpu(recipe: Recipe) -> bool:
    """Whether any part of a run of this recipe is on a GPU."""
    return '"cuda' in recipe.devices.model_dump_json()


async def ensure_gpu_limit() -> None:
    """Creates the limit of runs that use GPUs, at one; where it is there, it stays as people have set it."""
    await _ensure(GPU_LIMIT)


async def ensure_run_limit(run: str, root: str) -> None:
    """Creates the limit of a run, where it is not there."""
    await _ensure(run_limit(run, root))


@contextlib.asynccontextmanager
async def alone(run: str, root: str, recipe: Recipe, display: Display) -> AsyncIterator[None]:
    """Waits until no other run of this name goes on, and where the recipe uses GPUs, until these are free.

    Raises:
        ServerError: the limit of GPUs is not there.
    """
    await ensure_run_limit(run, root)
    async with contextlib.AsyncExitStack() as stack:
        await _acquire(stack, run_limit(run, root), display, f"waiting until no other run of '{run}' goes on")
        if needs_gpu(recipe):
            await _require(GPU_LIMIT)
            await _acquire(stack, GPU_LIMIT, display, "waiting for the GPUs")
        yield


async def skip_overdue() -> None:
    """Cancels, as skipped, the other runs of this deployment that its schedule has started and that still wait."""
    context = FlowRunContext.get()
    this = context.flow_run if context else None
    if this is None or this.deployment_id is None or not this.auto_scheduled:
        return
    which = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[this.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
    )
    skipped: State[None] = Cancelled(name=SKIPPED, message=f"'{this.name}' was due as well, and stands for this run")
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=which, sort=FlowRunSort.EXPECTED_START_TIME_ASC):
            if run.auto_scheduled and _is_due(run):
                await client.set_flow_run_state(run.id, skipped)


def _is_due(run: FlowRun) -> bool:
    # One that was sent away for want of a slot waits in a state of that name, with a start in the future.
    start = run.next_scheduled_start_time
    return run.state_name == "AwaitingConcurrencySlot" or (
        start is not None and start <= datetime.datetime.now(datetime.UTC)
    )


async def _acquire(stack: contextlib.AsyncExitStack, name: str, display: Display, waiting: str) -> None:
    # Each limit by itself: asked for several at once, Prefect is content where one of them exists.
    slot = concurrency(name, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False)
    late = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, display.say, waiting)
    try:
        await stack.enter_async_context(slot)
    finally:
        late.cancel()


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
