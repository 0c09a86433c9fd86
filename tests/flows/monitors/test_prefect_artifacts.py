"""What the UI shows may fail, and the run does not notice."""

import asyncio
import logging
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.host.progress import Display
from flows.monitors import prefect_artifacts
from flows.monitors.prefect_artifacts import Artifacts


def test_a_server_that_is_gone_is_logged_once_and_costs_no_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prefect_artifacts, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(prefect_artifacts, "LAST_SECONDS", 0.5)
    logging.getLogger("prefect").propagate = True
    shown = Artifacts("a", Display(), "file:///report.html", shown=True)

    async def work() -> str:
        async with shown.kept_up():
            shown.rounds([{"round": "0"}])
            await asyncio.sleep(1.5)
        return "done"

    gone: Any = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(gone), caplog.at_level(logging.WARNING, "prefect.rondo"):
        assert asyncio.run(work()) == "done"
    assert len([record for record in caplog.records if "does not show" in record.getMessage()]) == 1
