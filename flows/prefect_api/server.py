"""The Prefect server of a command: the user's own, that of ``rondo up``, or a temporary one for those who run none.

The temporary one is a child process that can never outlive its parent. Prefect's own temporary server stays behind when
the flow's process is killed; this one holds a pipe to its parent and ends when the pipe closes. Its database is private
and goes with it, so that runs side by side never wait for one another's locks. Users who want a history and the UI run
``rondo up``, or set ``PREFECT_API_URL`` to a server of their own.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from flows.errors import ServerError
from flows.host.progress import Display
from flows.prefect_api import server_record

Say = Callable[[str], None]
START_SECONDS = 600.0  # two cores that 28 processes shared needed more than three minutes
ANSWER_SECONDS = 60.0  # one whose database is busy has been seen to take more than ten
_LAST_SECONDS = 5.0  # for a call at the end, to a server that does not answer
_LOOK_SECONDS = 0.2

# Services that only a background server needs. With them, SQLite keeps each further subflow waiting for about 2 s.
_IDLE_SERVICES = (
    "EVENT_PERSISTER", "EVENT_LOGGER", "TRIGGERS", "TASK_RUN_RECORDER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP",
)  # fmt: skip


def serve(port: int) -> None:
    """Serves Prefect's API on loopback, in the child process, until standard input closes."""
    import uvicorn

    from flows.prefect_api.sqlite_server import begin_immediately

    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin_immediately()
    uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def has_background_server() -> bool:
    """Says whether the user, or ``rondo up``, runs a server: people reach it, and it outlives this process."""
    from prefect.settings import PREFECT_API_URL

    record = server_record.read()
    return bool(PREFECT_API_URL.value()) or (record is not None and record.server.process is not None)


@contextlib.asynccontextmanager
async def prefect_api(say: Say | None = None, *, scheduling: bool = False) -> AsyncIterator[str]:
    """Gives the address of the Prefect API: a background server's, see ``background_api``, else a temporary one's.

    Args:
        say: takes a line for people; by default it goes to standard error.
        scheduling: whether a temporary server must start scheduled runs.

    Raises:
        ServerError: a background server does not answer, or the temporary one does not start.
    """
    from prefect.events.clients import NullEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

    background = await background_api(say)
    if background is not None:
        with using(background):
            yield background
        return
    with tempfile.TemporaryDirectory(prefix="rondo-prefect-") as home:
        log = Path(home) / "server.log"
        url, process = _start_temporary(log, scheduling)
        with process, _ended(process):
            await asyncio.to_thread(wait_until, lambda: healthy(url), "temporary Prefect server", process, log)
            # Nobody can read the logs of a server that is about to vanish.
            watch = asyncio.create_task(_tell_if_it_ends(process, say or Display().say))
            # Nor its events: if the server ends early, they would be sent again and again, and waited for at exit.
            EventsWorker.set_client_override(NullEventsClient)
            try:
                with temporary_settings({PREFECT_API_URL: url, PREFECT_LOGGING_TO_API_ENABLED: False}):
                    yield url
            finally:
                watch.cancel()
                EventsWorker.set_client_override(None)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends a temporary server with the block: closes the pipe that it lives by, and kills it if that is not enough."""
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


async def _tell_if_it_ends(process: subprocess.Popen[bytes], say: Say) -> None:
    """Says so if a temporary server ends by itself. Its run goes on: the store alone decides what is done."""
    while process.poll() is None:
        await asyncio.sleep(_LOOK_SECONDS)
    say(f"the temporary Prefect server has ended (exit status {process.returncode}); the run goes on without it")


async def give_up_soon(ending: contextlib.ExitStack) -> None:
    """Has this task try the current server once a call until ``ending``, and not for minutes, if it does not answer.

    It is for the end of a flow, when the work is done and only Prefect has to be told of it.
    """
    from prefect.context import FlowRunContext
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    if not await asyncio.to_thread(healthy, PREFECT_API_URL.value()):
        ending.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        context = FlowRunContext.get()
        if context is not None:
            context.client._client.timeout = _LAST_SECONDS
        workers: Any = EventsWorker
        for worker in [*workers._instances.values()]:  # no setting reaches them: 8 s for each event that waits
            if (client := getattr(worker, "_client", None)) is not None:
                client._reconnection_attempts = 0


async def background_api(say: Say | None = None) -> str | None:
    """Returns the address of the user's own server if one is configured, else of that of ``rondo up``; None if none is.

    Raises:
        ServerError: the server does not answer.
    """
    from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL

    configured: str | None = PREFECT_API_URL.value()
    if configured:
        key = PREFECT_API_KEY.value()
        remedy = "start it, or unset PREFECT_API_URL to run without one"
        await _check_server(configured, key.get_secret_value() if key else None, remedy)
        return configured
    record = server_record.read()
    if record is None:
        return None
    if record.server.process is None:
        tell = say or Display().say
        tell(f"the Prefect server that 'rondo up' started at {record.ui} has ended: 'rondo up' starts it again")
        return None
    await _check_server(record.api, None, "'rondo down' ends it, and 'rondo up' starts it again")
    return record.api


@contextlib.contextmanager
def using(url: str) -> Iterator[None]:
    """Directs Prefect's own calls to the API at this address while the block runs."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        yield


async def _check_server(url: str, key: str | None, remedy: str) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS, headers=headers) as client:
            (await client.get(f"{url}/health")).raise_for_status()
    except httpx.HTTPError as error:
        why = str(error) or f"{type(error).__name__} after {ANSWER_SECONDS:.0f} s"
        raise ServerError(f"the Prefect server at {url} does not answer ({why}): {remedy}") from error


def healthy(api: str) -> bool:
    """Says whether a Prefect server answers at this address."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{api}/health", timeout=5).status_code == httpx.codes.OK
    return False


def wait_until(answers: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a process that was just started, and that writes to this log, answers.

    Raises:
        ServerError: the process has ended, or takes too long.
    """
    until = time.monotonic() + START_SECONDS
    while not answers():
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise ServerError(f"the {what} ended at its start: {lines[-1].strip()}")
        if time.monotonic() > until:
            raise ServerError(f"the {what} did not answer within {START_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)


def _start_temporary(log: Path, scheduling: bool) -> tuple[str, subprocess.Popen[bytes]]:
    port = _free_port()
    idle = _IDLE_SERVICES if scheduling else (*_IDLE_SERVICES, "SCHEDULER")
    environment = {
        **os.environ,
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in idle},
        "PREFECT_UI_ENABLED": "false",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{log.parent}/prefect.db",
    }
    command = [sys.executable, "-m", "flows.prefect_api.server", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    return f"http://127.0.0.1:{port}/api", process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    serve(int(sys.argv[1]))
