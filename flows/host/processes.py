"""Whether a process runs, and ending it with all its descendants."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import psutil

_LOOK_SECONDS = 0.2


def lives(process: psutil.Process) -> bool:
    """Says whether a process runs. One that has ended does not, even if its parent has not asked about it yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """Returns the processes that a process has started, and those that they have; none if it is gone."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return found


def processor_seconds(pid: int) -> float:
    """Returns the processor time of a process and its descendants so far."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                total += times.user + times.system
    return total


class Stillness:
    """For how long a process and its own children have computed nothing.

    Args:
        pid: the process.
        least: seconds of processor time that count as nothing between two looks.
        look_every: seconds between two looks; to look costs more than to ask.
    """

    def __init__(self, pid: int, least: float, look_every: float) -> None:
        self._pid, self._least, self._look_every = pid, least, look_every
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._spent, self._since, self._looked = -1.0, time.monotonic(), float("-inf")

    def seconds(self) -> float:
        """Says for how long they had computed nothing at the last look."""
        now = time.monotonic()
        if now - self._looked >= self._look_every:
            spent = processor_seconds(self._pid)
            if spent > self._spent + self._least or self._spent < 0:
                self._spent, self._since = spent, now
            self._looked = now
        return self._looked - self._since


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills those of the processes that still run."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_session(leader: int) -> None:
    """Kills what is left of the session that a process led, which by now may be nobody's child.

    Its own process group goes at once, and then the groups that others of the session have made.
    """
    with contextlib.suppress(OSError):  # nobody is left
        os.killpg(leader, signal.SIGKILL)
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # gone, or another user's
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


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
    """Returns those of the processes that live, and all their descendants that do."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {member.pid: member for member in (process, *process.children(recursive=True))}
    return [member for member in found.values() if lives(member)]
