"""Whether a process runs, and ending it with all its descendants."""

import contextlib
import time
from collections.abc import Iterable

import psutil

_LOOK_SECONDS = 0.2


def lives(process: psutil.Process) -> bool:
    """Whether a process runs. One that has ended and that nobody has asked about yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, and those that they have; none if it is gone."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return found


def processor_seconds(pid: int) -> float:
    """Processor time of a process and its descendants so far."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                total += times.user + times.system
    return total


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills those of the processes that still run."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def end_trees(processes: Iterable[psutil.Process], grace: float) -> None:
    """Asks processes to end, waits for them and their descendants, and kills what is left after ``grace`` seconds.

    Descendants are looked for before and while they end: afterwards nobody could tell whose they were.
    """
    asked = list(processes)
    tree = _with_descendants(asked)
    for process in asked:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    until = time.monotonic() + grace
    while (tree := _with_descendants(tree)) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    while tree := _with_descendants(tree):
        for member in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        time.sleep(_LOOK_SECONDS)


def _with_descendants(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that live, and all their descendants that do."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {member.pid: member for member in (process, *process.children(recursive=True))}
    return [member for member in found.values() if lives(member)]
