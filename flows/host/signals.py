"""Ctrl-C and a service manager's SIGTERM: both take the same way to an orderly end."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flows.errors import InterruptedRunError


@contextmanager
def orderly_end(message: str) -> Iterator[None]:
    """Has both signals end the block alike.

    Raises:
        InterruptedRunError: one came; with this message.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(message) from None
    finally:
        signal.signal(signal.SIGTERM, before)


class EndedBySignals:
    """Waits of the main thread that signals end: an event loop that such a wait holds up would hear of none.

    What the loop does with a signal it does after that. Other threads wait until ``end`` is called.

    Args:
        signals: those that ask this process to end, unless they are ignored.
        message: what is then said.
    """

    def __init__(self, signals: Sequence[signal.Signals], message: str) -> None:
        self._signals, self._message, self._ended = signals, message, threading.Event()

    def end(self) -> None:
        """Ends all waits, from now on."""
        self._ended.set()

    @contextmanager
    def __call__(self) -> Iterator[Callable[[float], None]]:
        """Goes around a wait; what it yields pauses for so many seconds, and raises InterruptedRunError at its end."""
        came: list[int] = []
        heard = self._signals if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.getsignal(number) for number in heard}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

        def pause(seconds: float) -> None:
            until = time.monotonic() + seconds
            while not came and not self._ended.is_set() and (left := until - time.monotonic()) > 0:
                self._ended.wait(min(left, 0.1))
            if came:
                self.end()  # also of waits to come: what closes the run must not wait again
            if self._ended.is_set():
                raise InterruptedRunError(self._message)

        for number in before:
            signal.signal(number, lambda number, _frame: came.append(number))
        try:
            yield pause
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if signal.SIGINT in came:  # the loop has not heard of it; of others it has
                signal.raise_signal(signal.SIGINT)
