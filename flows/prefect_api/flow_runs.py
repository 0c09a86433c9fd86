"""Flow runs as people see them in Prefect: the states in which they end, and the tag of their session."""

from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause, PrefectException
from prefect.states import Cancelled, Completed, Suspended

from flows.errors import InterruptedRunError, PausedRunError
from storage.log.run import Run

AWAITING_LABELS = "AwaitingLabels"
API_ERRORS = (httpx.HTTPError, PrefectException)
SESSION = "session:"


def session_tag(session: str) -> str:
    """Returns the tag by which others find the flow run in which a session of the store executes a run."""
    return f"{SESSION}{session}"


def awaiting_labels(message: str) -> State[Any]:
    """Returns the state of a flow run that has ended until people have labelled."""
    return Completed(name=AWAITING_LABELS, message=message)


async def end_flow_run(stopped: InterruptedRunError) -> State[Any]:
    """Returns the state in which the flow run around a run ends when the run was stopped.

    Raises:
        Pause: the run was paused; Prefect expects this exception.
    """
    context = FlowRunContext.get()
    if isinstance(stopped, PausedRunError) and context is not None and context.flow_run is not None:
        raise Pause(state=await suspend(context.flow_run.id, str(stopped)))
    return Cancelled(message=str(stopped))


async def suspend(flow_run: UUID, message: str) -> State[Any]:
    """Suspends a flow run without end, unless it is so already. Prefect's other pause is for a process that waits."""
    async with get_client() as client:
        state = (await client.read_flow_run(flow_run)).state
        # The UI's button suspends for minutes; after these Prefect fails the flow run, and nobody can resume it there.
        if state is None or state.name != "Suspended" or state.state_details.pause_timeout is not None:
            state = Suspended(message=message)
            await client.set_flow_run_state(flow_run, state, force=True)
        return state


def held_back(run: Run) -> str | None:
    """Says why a scheduled run is to leave this run alone; None if it goes on, as when its own flow run is resumed."""
    pause, context = run.pause, FlowRunContext.get()
    own = str(context.flow_run.id) if context is not None and context.flow_run is not None else None
    if pause is None or pause.get("flow_run") == own:
        return None
    return f"run '{run.name}' is paused by {pause['by']} since {pause['since']}: 'rondo resume {run.name}' goes on"


async def in_states(client: PrefectClient, states: list[StateType], which: FlowRunFilter) -> list[FlowRun]:
    """Lists the flow runs, of these, that are in one of these states; 20 at most."""
    which = which.model_copy(update={"state": FlowRunFilterState(type=FlowRunFilterStateType(any_=states))})
    return await client.read_flow_runs(flow_run_filter=which, limit=20)
