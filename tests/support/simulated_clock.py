"""An event loop whose clock jumps to the next moment at which something is due: hours of waiting take no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Selector(selectors.DefaultSelector):
    """Never waits: it moves the clock on by as long as it was asked to."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is due, and somebody waits: the schedule is stuck")
        self.now += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._clock.now


def simulate(work: Coroutine[Any, Any, Result]) -> Result:
    """What the work returns, with a clock that begins at 0 and knows nothing of the real one."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)
