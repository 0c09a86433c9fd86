"""Who writes to a run: one process at a time, told apart by its "session" entry."""

import os
import socket
import time
from pathlib import Path
from typing import Any, Literal

import psutil

from storage.log.manifest import Entry

Holder = Literal["alive", "dead", "unknown"]

# The start time that psutil gives is computed from the wall clock, so that it moves when the clock is set: it tells
# processes apart only if no ticks since the system's start do.
_CLOCK_TOLERANCE_S = 5.0

# Sessions of this process that are over, though their closing entry may have failed.
_over: set[str] = set()


def describe_process() -> dict[str, Any]:
    """Describes this process, as the meta of a "session" entry."""
    process = psutil.Process()
    ticks = {"ticks": found} if (found := _ticks(process.pid)) is not None else {}
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), **ticks, **_numbering()}


def end(session_id: str) -> None:
    """Remembers that a session of this process writes no more."""
    _over.add(session_id)


def holder(session: Entry) -> Holder:
    """Says whether the session's process still runs; "unknown" on another host, or in another container."""
    meta = session.meta
    if session.session in _over:
        return "dead"
    if meta.get("host") != socket.gethostname() or _numbered_elsewhere(session):
        return "unknown"
    pid, started = meta.get("pid"), meta.get("started")
    if not isinstance(pid, int) or not isinstance(started, int | float) or pid < 1:
        return "unknown"
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return "dead"
        if "ticks" in meta and meta.get("boot") == _numbering().get("boot"):
            return "alive" if _ticks(pid) == meta["ticks"] else "dead"
        return "alive" if abs(process.create_time() - started) < _CLOCK_TOLERANCE_S else "dead"
    except psutil.NoSuchProcess:
        return "dead"
    except psutil.AccessDenied:
        return "unknown"


def describe_place(session: Entry) -> str:
    """Says which process the session's is, and where."""
    pid, host, elsewhere = session.meta.get("pid"), session.meta.get("host"), _numbered_elsewhere(session)
    itself = " (this very process)" if pid == os.getpid() and host == socket.gethostname() and not elsewhere else ""
    return f"process {pid}{itself} on host {host}" + (
        ", in another PID namespace (a container's?)" if elsewhere else ""
    )


def describe_holder(session: Entry) -> str:
    """Says which process the session's is, and where, and since when it writes."""
    return f"{describe_place(session)}, since {session.time}"


def _ticks(pid: int) -> int | None:
    """Says when a process began, in the kernel's ticks since its own start; None if that cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _numbering() -> dict[str, str]:
    """Says what a process id counts in: the system's boot, and the PID namespace. Empty if that cannot be read.

    A container on its host's network has the host's name, and process ids of its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "pid_namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def _numbered_elsewhere(session: Entry) -> bool:
    """Says whether the session's process id means nothing here. After another boot it does: that process is gone."""
    ours, meta = _numbering(), session.meta
    return bool(ours) and meta.get("boot") == ours["boot"] and meta.get("pid_namespace") != ours["pid_namespace"]


def utc_now() -> str:
    """Returns the time, UTC, in ISO 8601, to the millisecond."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
