"""What this machine's processor lends to a run: how many cores there are for it."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of work in each period, or "max"


def available_cores() -> int:
    """Counts the cores that this process may use: those that it is bound to, and no more than its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(_QUOTA)
    return cores if quota is None else max(1, min(cores, quota))


def _quota(path: Path) -> int | None:
    """Reads a container's quota in whole cores, rounded down; None if it has none."""
    try:
        work, period = path.read_text(encoding="ascii").split()
        return int(work) // int(period)
    except (OSError, ValueError):  # there is no such file, or it says "max"
        return None
