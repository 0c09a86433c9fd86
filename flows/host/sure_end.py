"""The end of a command that was asked to end: it comes within a stated time, whoever the command waits for.

Prefect's client tries again for minutes when a server does not answer, in calls of a task, in calls that hold up the
thread, and when the interpreter ends. No list of these would be complete. So a thread watches the end, and the time
runs from the first Ctrl-C or other signal:

    OTHERS_SECONDS   what others are waited for once the command's own work has ended; then the wait is cut, again and
                     again, which for a task is a cancellation
    LAST_SECONDS     more, and the process ends from here: its workers are killed, what can be closed is closed
    STOP_SECONDS     the same, after all that is waited for together, the command's own work as well

What a run has committed is in the store by then, and what it has not would have been lost all the same.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

OTHERS_SECONDS = 6.0
LAST_SECONDS = 4.0
STOP_SECONDS = 60.0  # a worker has 5 s to end, a replica 10 s, messages to people 30 s
INTERRUPTED_STATUS = 130  # as shells count an end by Ctrl-C
_LOOK_SECONDS = 0.25

Cut = Callable[[], object]


class SureEnd:
    """The watch over one run's end.

    Args:
        at_last: says what is to be said and closes what can be closed, before the process ends from here. It has
            ``LAST_SECONDS``.

    Attributes:
        ends_process: whether this process is a command's, and may be ended. That of a program that has imported us is
            not: there, waits for others are cut, and that is all.
    """

    ends_process: ClassVar[bool] = False

    def __init__(self, at_last: Callable[[], None]) -> None:
        self._at_last = at_last
        self._asked: float | None = None
        self._cut: Cut | None = None
        self._since = 0.0
        self._over = threading.Event()

    def ask(self) -> None:
        """Has the time run; a handler of signals may call this, as it waits for nothing. Only the first call counts."""
        if self._asked is None:
            self._asked = time.monotonic()

    @property
    def waits_for_others(self) -> bool:
        """Says whether what goes on now is others' work, and may be cut."""
        return self._cut is not None

    @contextlib.contextmanager
    def waiting_for_others(self, cut: Cut) -> Iterator[None]:
        """Says that the block waits for others, but for the own work in it.

        Args:
            cut: ends what is being waited for; called by another thread, and again if it has not helped.
        """
        with self._now(cut):
            yield

    @contextlib.contextmanager
    def own_work(self) -> Iterator[None]:
        """Says that the block, within one that waits for others, is the command's own work, which nobody cuts."""
        with self._now(None):
            yield

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while the block runs; if the process was asked to end, and is a command's, until it has ended."""
        threading.Thread(target=self._watch, name="rondo-end", daemon=True).start()
        try:
            yield
        finally:
            if self._asked is None or not self.ends_process:
                self._over.set()

    @contextlib.contextmanager
    def _now(self, cut: Cut | None) -> Iterator[None]:
        before = self._cut
        self._since, self._cut = time.monotonic(), cut
        try:
            yield
        finally:
            self._since, self._cut = time.monotonic(), before

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            cut, asked, now = self._cut, self._asked, time.monotonic()
            if asked is None:
                continue
            waited = now - max(asked, self._since) if cut is not None else 0.0
            if cut is not None and waited > OTHERS_SECONDS:
                cut()
            if self.ends_process and (waited > OTHERS_SECONDS + LAST_SECONDS or now - asked > STOP_SECONDS):
                self._end_process()

    def _end_process(self) -> None:
        from flows.host.processes import descendants, kill, kill_session  # loaded by then; most commands need no psutil

        workers = descendants(os.getpid())
        kill(workers)
        for worker in workers:
            kill_session(worker.pid)
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(LAST_SECONDS)
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h")  # the cursor, which lines that move have hidden
        os._exit(INTERRUPTED_STATUS)

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # as when the store is gone, too; a new writer takes that for a crash
            self._at_last()


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Says that this process is a command's while the block runs."""
    SureEnd.ends_process = True
    try:
        yield
    finally:
        SureEnd.ends_process = False


def leave(status: int) -> None:
    """Has a process in which all is said and done end soon, whatever waits when the interpreter ends."""
    last = threading.Timer(LAST_SECONDS, os._exit, (status,))
    last.daemon = True
    last.start()
