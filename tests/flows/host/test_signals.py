"""A wait that holds up the event loop ends when a signal comes, and the loop hears of the signal all the same."""

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest

from flows.errors import InterruptedRunError
from flows.host.signals import EndedBySignals

ASKED = (signal.SIGINT, signal.SIGTERM)


def wait_for_ever(waiting: EndedBySignals) -> None:
    with waiting() as pause:
        while True:
            pause(30)


def wait_until_ended(waiting: EndedBySignals) -> None:
    with contextlib.suppress(InterruptedRunError):
        wait_for_ever(waiting)


def hold_up(waiting: EndedBySignals, number: signal.Signals) -> float:
    """Waits in the thread of the loop, until the signal has come; returns for how long."""
    began = time.monotonic()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(InterruptedRunError, match="waited"):
        wait_for_ever(waiting)
    return time.monotonic() - began


def test_a_signal_of_the_loop() -> None:
    async def work() -> list[str]:
        heard: list[str] = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
        waiting = EndedBySignals(ASKED, "waited")
        assert hold_up(waiting, signal.SIGTERM) < 20
        began = time.monotonic()
        with pytest.raises(InterruptedRunError):  # what closes the run waits no more
            wait_for_ever(waiting)
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        return heard

    assert asyncio.run(work()) == ["SIGTERM"]


def test_ctrl_c_cancels_the_task_as_ever() -> None:
    async def work() -> str:
        assert hold_up(EndedBySignals(ASKED, "waited"), signal.SIGINT) < 20
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "cancelled"
        return "slept"

    assert asyncio.run(work()) == "cancelled"


def test_what_is_ignored_ends_nothing() -> None:
    """As Ctrl-C in a scheduled run, whose schedule ends it in order. Another thread waits until the run has failed."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        waiting = EndedBySignals(ASKED, "waited")
        with waiting() as pause:
            signal.raise_signal(signal.SIGINT)
            pause(0.01)
        thread = threading.Thread(target=wait_until_ended, args=(waiting,))
        thread.start()
        waiting.end()
        thread.join(20)
        assert not thread.is_alive()
    finally:
        signal.signal(signal.SIGINT, before)
