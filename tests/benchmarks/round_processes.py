"""What the processes of a run use while it runs: their memory, and their time of the processor."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

WORKERS = ("sampler", "judge", "trainer")
LOOK_SECONDS = 0.25
"""Between two looks. Each walks the machine's processes, which on two cores is to take less than one in a hundred."""


@dataclass
class Usage:
    """Of a flow and its workers, by what they are called; ``others`` are what else they have started.

    Attributes:
        peaks: largest resident memory so far, in bytes.
        looks: when was looked, in seconds since the epoch, and the seconds of the processor until then.
    """

    peaks: dict[str, int] = field(default_factory=dict)
    looks: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)

    def processor(self, start: float, end: float) -> dict[str, float]:
        """Seconds of the processor between two moments; between two looks it is taken to be used evenly."""
        moments = [moment for moment, _ in self.looks]
        used: dict[str, float] = {}
        for name in self.looks[-1][1] if self.looks else ():
            sums = [found.get(name, 0.0) for _, found in self.looks]
            before, after = np.interp([start, end], moments, sums)
            used[name] = float(after - before)
        return used


@contextlib.contextmanager
def usage_of(pid: int) -> Iterator[Usage]:
    """While the block runs, what a flow and its workers use.

    Memory is the system's own high-water mark, so that nothing is missed between two looks but what comes after the
    last one. A process that has ended keeps the time that it had used.
    """
    usage, ended = Usage(), threading.Event()
    parts: dict[int, tuple[str, float]] = {}

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                for one in (process, *process.children(recursive=True)):
                    name, times = _part(one, pid), one.cpu_times()
                    parts[one.pid] = name, times.user + times.system
                    usage.peaks[name] = max(usage.peaks.get(name, 0), high_water(one.pid))
            sums: dict[str, float] = {}
            for name, seconds in parts.values():
                sums[name] = sums.get(name, 0.0) + seconds
            usage.looks.append((time.time(), sums))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield usage
    finally:
        ended.set()
        watching.join()


def _part(process: psutil.Process, flow: int) -> str:
    if process.pid == flow:
        return "flow"
    command = process.cmdline()
    found = (kind for kind in WORKERS if "flows.remote.worker_main" in command and kind in command)
    return next(found, "others")


def high_water(pid: int) -> int:
    """The largest resident memory of a process so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
