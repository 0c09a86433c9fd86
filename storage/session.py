"""Who writes to a run: one process at a time, told apart by its "session" entry."""

import os
import socket
import time
from typing import Any, Literal

import psutil

from storage.manifest import Entry

Holder = Literal["alive", "dead", "unknown"]

# The start time that psutil gives is computed from the wall clock, so that it moves when the clock is set.
_CLOCK_TOLERANCE_S = 5.0

# Sessions of this process that are over, though their closing entry may have failed.
_over: set[str] = set()


def describe_process() -> dict[str, Any]:
    """This process, as the meta of a "session" entry."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def end(session_id: str) -> None:
    """Remember that a session of this process writes no more."""
    _over.add(session_id)


def holder(session: Entry) -> Holder:
    """Whether the process that opened the session still runs; "unknown" on another host."""
    meta = session.meta
    if session.session in _over:
        return "dead"
    if meta.get("host") != socket.gethostname():
        return "unknown"
    pid, started = meta.get("pid"), meta.get("started")
    if not isinstance(pid, int) or not isinstance(started, int | float) or pid < 1:
        return "unknown"
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return "dead"
        return "alive" if abs(process.create_time() - started) < _CLOCK_TOLERANCE_S else "dead"
    except psutil.NoSuchProcess:
        return "dead"
    except psutil.AccessDenied:
        return "unknown"


def describe_holder(session: Entry) -> str:
    """The session's process in words."""
    pid, host = session.meta.get("pid"), session.meta.get("host")
    itself = " (this very process)" if pid == os.getpid() and host == socket.gethostname() else ""
    return f"process {pid}{itself} on host {host}, since {session.time}"


def utc_now() -> str:
    """The time, UTC, ISO 8601, to the millisecond."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
