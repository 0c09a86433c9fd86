"""Runs the command line in this process, and kills the sampler (SIGKILL) each time that it is given a certain shard.

    python -m support.poisoned STAGE:ROUND:SHARD rondo-arguments...

STAGE is ``candidates`` or ``eval_candidates``. So the engine dies for real, with whatever else is in it.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from flows.process import WorkerProcess


def arm(stage: str, number: int, shard: int) -> None:
    """Wraps the real call to a worker with the kill."""
    call = WorkerProcess.call

    async def killing_call(self: WorkerProcess, method: str, **arguments: Any) -> Any:
        if method != "sample" or (arguments["stage"], arguments["round"], arguments["shard"]) != (stage, number, shard):
            return await call(self, method, **arguments)
        calling = asyncio.create_task(call(self, method, **arguments))
        requests = self._requests
        while self._requests == requests:  # until it has its turn in the worker
            await asyncio.sleep(0)
        os.kill(self.pid or 0, signal.SIGKILL)
        return await calling

    WorkerProcess.call = killing_call  # type: ignore[method-assign]


def main() -> None:
    stage, number, shard = sys.argv[1].split(":")
    arm(stage, int(number), int(shard))
    sys.argv = ["rondo", *sys.argv[2:]]
    from flows.cli import main as rondo

    rondo()


if __name__ == "__main__":
    main()
