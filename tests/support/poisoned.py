"""A shard on which the engine dies: the sampler kills itself (SIGKILL) in the middle of it, each time.

Armed in the processes that `support.forkserver` forks, by the variable RONDO_POISON: ``STAGE:ROUND:SHARD``, where STAGE
is ``candidates`` or ``eval_candidates``.
"""

import functools
import os
import signal
from collections.abc import Generator
from typing import Any

from flows.workers.sampler import SamplerWorker


def arm(poison: str) -> None:
    """Wraps the real sampling with the kill, once the shard is in the engine."""
    stage, number, shard = poison.split(":")
    real = SamplerWorker.sample

    @functools.wraps(real)
    def sample(self: SamplerWorker, **arguments: Any) -> Generator[object, None, Any]:
        turns = real(self, **arguments)
        if (arguments["stage"], arguments["round"], arguments["shard"]) == (stage, int(number), int(shard)):
            next(turns)
            os.kill(os.getpid(), signal.SIGKILL)
        return (yield from turns)

    SamplerWorker.sample = sample  # type: ignore[method-assign]
