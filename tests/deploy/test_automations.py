"""The shipped automation is the one that ``rondo up`` creates."""

from pathlib import Path

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

from flows.automation import crashed_runs
from flows.prefect_settings import HEARTBEAT_VARIABLE

SHIPPED = Path(__file__).parents[2] / "deploy" / "automations" / "crashed-runs.yaml"


def test_the_shipped_automation_is_that_of_rondo_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEARTBEAT_VARIABLE, "30")
    assert AutomationCore.model_validate(yaml.safe_load(SHIPPED.read_text())) == crashed_runs()
