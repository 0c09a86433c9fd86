"""The automation that finds killed runs; ``rondo up`` creates it.

A process that dies by SIGKILL, or with its machine, leaves its flow runs Running. Prefect marks them as Crashed once
they give no sign of life for three times the interval. For other servers than that of ``rondo up`` the same automation
is written down in ``deploy/automations/crashed-runs.yaml``.
"""

from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.prefect_api import heartbeat_seconds

_SIGN = "prefect.flow-run.heartbeat"
# One by one: any other event of a flow run may come after the last sign of life.
_ENDS = (
    "Completed", "Skipped", "AwaitingLabels", "Failed", "Crashed", "Cancelled", "Paused", "Suspended", "Resuming",
    "AwaitingRetry",
)  # fmt: skip


def crashed_runs() -> AutomationCore:
    """Returns the automation, for the interval between signs of life that this environment says."""
    within = 3 * heartbeat_seconds()
    gone = f"No sign of life for {within} s: the process, or its machine, is gone. What is committed stays."
    return AutomationCore(
        name="rondo - mark killed runs as crashed",
        description=f"A flow run of rondo that gives no sign of life for {within} s becomes Crashed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.role": "flow",
                "prefect.resource.name": ["rondo", "rondo-schedule"],
            },
            after={_SIGN},
            expect={_SIGN, *(f"prefect.flow-run.{end}" for end in _ENDS)},
            for_each={"prefect.resource.id"},
            within=timedelta(seconds=within),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=gone)],
    )


async def ensure_crashed_runs() -> None:
    """Creates the automation on the current server; if there is one of its name, it stays as people have set it."""
    wanted = crashed_runs()
    async with get_client() as client:
        if not await client.read_automations_by_name(wanted.name):
            await client.create_automation(wanted)
