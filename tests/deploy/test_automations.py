"""The shipped automation is the one that ``rondo up`` creates."""

from pathlib import Path

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore, EventTrigger

from flows.prefect_api import HEARTBEAT_VARIABLE
from flows.prefect_api.flow_runs import AWAITING_LABELS
from flows.prefect_api.limits import SKIPPED
from flows.schedule.crash_automation import crashed_runs

SHIPPED = Path(__file__).parents[2] / "deploy" / "automations" / "crashed-runs.yaml"


def test_the_shipped_automation_is_that_of_rondo_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEARTBEAT_VARIABLE, "30")
    assert AutomationCore.model_validate(yaml.safe_load(SHIPPED.read_text())) == crashed_runs()


@pytest.mark.parametrize("end", ["Completed", "Failed", "Cancelled", SKIPPED, AWAITING_LABELS])
def test_a_flow_run_that_has_ended_is_not_taken_for_a_killed_one(end: str) -> None:
    trigger = crashed_runs().trigger
    assert isinstance(trigger, EventTrigger)
    assert f"prefect.flow-run.{end}" in trigger.expect
