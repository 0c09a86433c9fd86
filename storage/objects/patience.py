"""Patience with a bucket: what it refuses for a while, or does not answer, is asked again, and people are told of it.

The client itself tries again for a second or two, and nothing interrupts it meanwhile. The longer wait is here.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from obstore.store import RetryConfig

DEFAULT_SECONDS = 300.0
FIRST_SECONDS = 10.0
"""Longest wait for a backend that nobody could connect to yet: most often its address is wrong."""

TELL_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0

# 409 is S3's ConditionalRequestConflict: two wrote at once, and neither knows yet whose write took place.
_REFUSED = re.compile(r"status code: ((?:408|409|429|500|502|503|504)[^:\n]*)")
_CONFLICT = re.compile(r"status code: (409[^:\n]*)")
_UNANSWERED = re.compile(r"HTTP error: ([^\n]*)")

_Answer = TypeVar("_Answer")
Waiting = Callable[[], AbstractContextManager[Callable[[float], None]]]


def client_retries(seconds: float | None) -> "RetryConfig":
    """Says how often the client itself tries again: for so many seconds, or else a few times."""
    if seconds is None:
        return {"max_retries": 3, "retry_timeout": timedelta(seconds=FIRST_SECONDS)}
    return {"max_retries": 10_000, "retry_timeout": timedelta(seconds=seconds)}


class Patience:
    """How a store waits for its backend. Threads share it.

    Attributes:
        seconds: how long one request is made again.
        say: takes a sentence for people.
        waiting: entered around each wait; gives what pauses for so many seconds, and may raise to end the wait.
        reached: whether the backend has ever answered; until then FIRST_SECONDS is the longest wait for a connection.
    """

    def __init__(self, root: str) -> None:
        self.seconds = DEFAULT_SECONDS
        self.say: Callable[[str], None] = logging.getLogger(__name__).warning
        self.waiting: Waiting = lambda: nullcontext(time.sleep)
        self.reached = False
        self._root, self._lock, self._told = root, threading.Lock(), 0.0

    def ask(self, call: Callable[[], _Answer], *, patient: bool = False) -> _Answer:
        """Returns what a request gives, which is made again as long as its error may pass, and patience lasts.

        Args:
            patient: the request takes long, and waits itself for what may pass, but for a conflict, which clients take
                for an answer. Patience counts from the first conflict.
        """
        began, length = None if patient else time.monotonic(), _FIRST_PAUSE
        with ExitStack() as stack:
            pause = None
            while True:
                try:
                    answer = call()
                except Exception as error:
                    refused, unanswered = _REFUSED.search(str(error)), _UNANSWERED.search(str(error))
                    self.reached = self.reached or unanswered is None
                    most = self.seconds if self.reached else min(self.seconds, FIRST_SECONDS)
                    why = _CONFLICT.search(str(error)) if patient else refused or unanswered
                    began = began or time.monotonic()
                    if why is None or time.monotonic() + length - began > most:
                        raise
                    self._tell(why[1].strip(), began, most)
                else:
                    self.reached = True
                    self._answered()
                    return answer
                pause = pause or stack.enter_context(self.waiting())
                pause(length)
                length = min(2 * length, _LONGEST_PAUSE)

    @contextmanager
    def watching(self, look: Callable[[], object]) -> Iterator[None]:
        """Goes around what the client itself waits for: looks, by a request of its own, if that takes long.

        So people are told if the backend is why.
        """

        def ask() -> None:
            try:
                look()
            except Exception:  # whoever waits will hear of it
                return

        timer = threading.Timer(TELL_SECONDS, ask)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _tell(self, why: str, began: float, most: float) -> None:
        with self._lock:
            if self._told or time.monotonic() - began < TELL_SECONDS:
                return
            self._told = began
        self.say(f"{self._root} does not answer as it should ({why}): waiting, {most:g} s at most")

    def _answered(self) -> None:
        if not self._told:
            return
        with self._lock:
            began, self._told = self._told, 0.0
        if began:
            self.say(f"{self._root} answers again, after {time.monotonic() - began:.0f} s")
