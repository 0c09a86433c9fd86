"""``rondo up`` and ``rondo down``: a Prefect server with its UI, and a worker of this machine, in the background.

The server listens on loopback alone and keeps its history in SQLite under its home. Pages from elsewhere that a browser
shows cannot use it. They cannot read it, as it names the only origins that may, nor write to it, as it asks for a
token.

Both are started as Prefect starts them in the foreground. Prefect's own background mode throws away what the server
says, also why it ended. And ``prefect server stop`` ends whichever process has the number that it wrote down.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx

from flows.errors import ServerError
from flows.host.processes import end_trees
from flows.prefect_api import server_record
from flows.prefect_api.server import Say, healthy, using, wait_until
from flows.prefect_api.server_record import DEFAULT_POOL, Record, Started
from flows.schedule.pool_worker import GRACE_SECONDS, end_worker

# Runs that wait for another count among the eight: a schedule that was not served for days starts no more at once.
_WORKER_OPTIONS = ("--limit", "8", "--install-policy", "never")

# Settings of other servers: what a shell says of one would misguide this server and its worker.
_OTHERS = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_UI_URL", "PREFECT_UI_API_URL", "PREFECT_PROFILE")


def up(port: int, root: str, say: Say, pool: str = DEFAULT_POOL) -> tuple[Record, bool]:
    """Starts the server and the worker, unless they run already, and waits until both answer.

    Args:
        root: where the runs of the shipped recipes' deployments are kept.

    Returns:
        What runs, and whether any of it was started by this call.

    Raises:
        ServerError: the port is taken, another ``rondo up`` or ``rondo down`` is at work, or one of the two ended.
    """
    with _alone():
        record = server_record.read()
        if record is not None and record.server.process is None:
            say(f"the Prefect server that was started at {record.ui} has ended by itself; its log is {_log('server')}")
            _end(record)
            record = None
        if record is not None and record.worker is not None and record.worker.process is not None:
            return record, False
        try:
            if record is None:
                say(
                    f"starting Prefect's server on 127.0.0.1:{port}, which takes up to a minute; its log is "
                    f"{_log('server')}"
                )
                record = _start_server(port, pool)
            else:
                say(f"the worker has ended by itself; its log is {_log('worker')}")
            say("preparing the work pool, the limits of runs, and a deployment of each recipe that ships")
            _prepare(record, root)
            say(f"starting a worker of this machine: its log is {_log('worker')}")
            return _start_worker(record), True
        except BaseException:
            if (left := server_record.read()) is not None:
                _end(left)
            raise


def down() -> Record | None:
    """Ends the server and the worker, with all that they have started, and returns what ran; None if nothing did.

    Raises:
        ServerError: another ``rondo up`` or ``rondo down`` is at work.
    """
    if not server_record.home().is_dir():
        return None
    with _alone():
        record = server_record.read()
        if record is not None:
            _end(record)
        return record


def _end(record: Record) -> None:
    if record.worker is not None and (worker := record.worker.process) is not None:
        end_worker(worker)
    if (server := record.server.process) is not None:
        end_trees([server], GRACE_SECONDS)
    server_record.remove()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds a lock that goes with this process, so that two commands never start or end the same thing."""
    home = server_record.home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ServerError("another 'rondo up' or 'rondo down' is at work: wait until it is done") from None
        yield


def _start_server(port: int, pool: str) -> Record:
    _check_port(port)
    command = [sys.executable, "-m", "flows.prefect_api.sqlite_server", "server", "start"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    process = _spawn("server", command, _server_environment(port))
    record = Record(port, pool, Started.of(process.pid))
    server_record.write(record)

    _wait(lambda: healthy(record.api), "server", process)
    return record


def _start_worker(record: Record) -> Record:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus

    # Its id tells this worker from one before it, which the server may still take for online.
    name = f"{socket.gethostname()}-{time.time_ns()}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", record.pool, "--type", "process"]
    process = _spawn("worker", [*command, "--name", name, *_WORKER_OPTIONS], _worker_environment(record))
    record = replace(record, worker=Started.of(process.pid))
    server_record.write(record)
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with using(record.api), get_client(sync_client=True) as client:

        def polls() -> bool:
            found = client.read_workers_for_work_pool(record.pool, worker_filter=online)
            return any(worker.name == name for worker in found)

        _wait(polls, "worker", process)
    return record


def _prepare(record: Record, root: str) -> None:
    """Makes the pool, the limit, the automation and the deployments, before a worker can start a run."""
    import asyncio

    from flows.prefect_api.limits import ensure_gpu_limit
    from flows.schedule.crash_automation import ensure_crashed_runs
    from flows.schedule.deployments import ensure_pool
    from flows.schedule.shipped import ensure_shipped

    async def ensure() -> None:
        await ensure_pool(record.pool, "process")
        await ensure_gpu_limit()
        await ensure_crashed_runs()
        await ensure_shipped(record.pool, root)

    with using(record.api):
        asyncio.run(ensure())


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return
        except PermissionError:
            raise ServerError(f"port {port} is not for this user: give a --port from 1024 on") from None
        except OSError:
            pass
    remedy = "give another --port"
    with contextlib.suppress(httpx.HTTPError):
        if httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=5).text.strip() == "true":
            remedy = (
                f"a Prefect server answers there; use it with PREFECT_API_URL=http://127.0.0.1:{port}/api, or {remedy}"
            )
    raise ServerError(f"port {port} is taken: {remedy}")


def _spawn(what: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with _log(what).open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _wait(answers: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    try:
        wait_until(answers, what, process, _log(what))
    except ServerError as error:
        raise ServerError(f"{error}; its log is {_log(what)}") from None


def _environment() -> dict[str, str]:
    """Returns this command's environment without what it says of other servers, and with logs at level INFO."""
    return {
        **{name: value for name, value in os.environ.items() if name not in _OTHERS},
        "PREFECT_HOME": str(server_record.home()),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    }


def _server_environment(port: int) -> dict[str, str]:
    origins = ",".join(f"http://{host}:{port}" for host in ("127.0.0.1", "localhost"))
    return {
        **_environment(),
        # The UI is told this address, and not the port that it was served from.
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        # Prefect writes the UI anew for each address, by default beside its own code.
        "PREFECT_UI_STATIC_DIRECTORY": str(server_record.home() / "ui"),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        # Leases in memory would be forgotten when the server ends, and their slots would stay taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def _worker_environment(record: Record) -> dict[str, str]:
    return {**_environment(), "PREFECT_API_URL": record.api}


def _log(what: str) -> Path:
    return server_record.home() / f"{what}.log"
