"""What this machine's processor lends to a run: how many cores there are for it, and whether these know bfloat16."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of work in each period, or "max"

_FLAGS = Path("/proc/cpuinfo")
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last one is ARM's


def available_cores() -> int:
    """Counts the cores that this process may use: those that it is bound to, and no more than its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(_QUOTA)
    return cores if quota is None else max(1, min(cores, quota))


def multiplies_bfloat16() -> bool:
    """Says whether the processor has instructions for products of bfloat16; False if it does not say."""
    try:
        lines = _FLAGS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _BFLOAT16.isdisjoint(flags.split())


def _quota(path: Path) -> int | None:
    """Reads a container's quota in whole cores, rounded down; None if it has none."""
    try:
        work, period = path.read_text(encoding="ascii").split()
        return int(work) // int(period)
    except (OSError, ValueError):  # there is no such file, or it says "max"
        return None
