"""Waiting for people with Prefect's UI: the flow run is Paused, with a form, and goes on when somebody has labelled.

The process stays, but without its workers, so that the device is free. Every few seconds it looks for labels, for the
form, and for the time. If Prefect suspended the flow run, the process would end, and a deployment would have to start
it again, which a run by hand lacks. If the process is gone, nothing is lost: a resumed run waits again.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid4

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.input import RunInput
from prefect.input.run_input import Keyset, keyset_from_paused_state
from prefect.states import Paused, Running
from pydantic import Field

from flows.prefect_api.flow_runs import API_ERRORS

LOOK_SECONDS = 3.0
Outcome = Literal["labelled", "time", "judge", "stop"]

GO_ON, STOP = "go on with what the judge said", "stop the run"


class _Form(RunInput):
    """What people can do in the UI beside labelling."""

    then: Literal["stop the run", "wait on"] = Field("wait on", description="what the run is to do")


class _FormWithJudge(RunInput):
    """As above, if there is a judge whose verdicts can be taken."""

    then: Literal["go on with what the judge said", "stop the run", "wait on"] = Field(
        "wait on", description="what the run is to do"
    )


async def wait_in_prefect(
    flow_run: UUID, task: str, missing: Callable[[], int], deadline: datetime, *, has_judge: bool
) -> Outcome:
    """Pauses a flow run until people have labelled, have chosen in the UI, or the time is over.

    Args:
        flow_run: the one that people see as the run.
        task: what they are to do, in one line.
        missing: how many labels are missing still.
        deadline: when the time is over.
        has_judge: whether the round can go on without labels.
    """
    form: type[_Form] | type[_FormWithJudge] = _FormWithJudge if has_judge else _Form
    form = form.with_initial_data(description=f"{task}\n\nTime is over at {deadline:%Y-%m-%d %H:%M} UTC.")
    async with get_client() as client:
        while True:
            keys = await _pause(client, flow_run, form, task)
            outcome = await _outcome(client, flow_run, missing, deadline)
            if outcome is not None:
                with contextlib.suppress(*API_ERRORS):  # the labels are there, whatever the page shows
                    await client.set_flow_run_state(flow_run, Running(message=outcome), force=True)
                return outcome
            chosen = (await form.aload(keys, flow_run)).then
            if chosen == GO_ON:
                return "judge"
            if chosen == STOP:
                return "stop"


async def _pause(client: PrefectClient, flow_run: UUID, form: type[RunInput], task: str) -> Keyset:
    key = f"people-{uuid4()}"
    state: State[None] = Paused(reschedule=False, pause_key=key, message=task)
    keys = keyset_from_paused_state(state)
    state.state_details.run_input_keyset = {str(name): str(key) for name, key in keys.items()}
    await form.asave(keys, flow_run)
    await client.set_flow_run_state(flow_run, state, force=True)
    return keys


async def _outcome(
    client: PrefectClient, flow_run: UUID, missing: Callable[[], int], deadline: datetime
) -> Outcome | None:
    """Waits, and says how the wait has ended; None if somebody has sent the form."""
    while True:
        if await asyncio.to_thread(missing) <= 0:
            return "labelled"
        left = (deadline - datetime.now(deadline.tzinfo)).total_seconds()
        if left <= 0:
            return "time"
        await asyncio.sleep(min(LOOK_SECONDS, left))
        try:
            state = (await client.read_flow_run(flow_run)).state
        except API_ERRORS:  # the labels count, and the clock
            continue
        if state is not None and state.is_running():
            return None
