"""A Prefect server as people run it, with its database on disk and all of its services, on loopback."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from flows.prefect_api.server import healthy, wait_until


class BackgroundServer:
    """A server that runs, and what people do in its UI: the same requests as its buttons send."""

    def __init__(self, home: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api"
        self.variables = {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.url}

    def flow_runs(self, name: str) -> list[dict[str, Any]]:
        """The flow runs of a name, the newest first."""
        wanted = {"flow_runs": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC"}
        found: list[dict[str, Any]] = self.post("/flow_runs/filter", wanted)
        return found

    def set_state(self, name: str, state: dict[str, Any]) -> None:
        """Sets the state of the newest flow run of a name."""
        (newest, *_) = self.flow_runs(name)
        self.post(f"/flow_runs/{newest['id']}/set_state", {"state": state, "force": True})

    def artifacts(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """The artifacts of a flow run, by key; there is one of each."""
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
        by_key = {artifact["key"]: artifact for artifact in found}
        assert len(by_key) == len(found)
        return by_key

    def post(self, path: str, body: Any) -> Any:
        answer = httpx.post(self.url + path, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def background_server(home: Path) -> Iterator[BackgroundServer]:
    """Starts one whose data are in ``home``, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = BackgroundServer(home, port)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_UI_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows.prefect_api.sqlite_server", "server", "start"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (
        (home / "server.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            wait_until(lambda: healthy(server.url), "server", process, home / "server.log")
            yield server
        finally:
            process.terminate()
