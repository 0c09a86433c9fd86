"""Runs the command line with a trainer that writes a round's policy only when all held-out prompts have been sampled.

    python -m support.slow_save ROUND HOW rondo-arguments...

HOW is ``well``; ``full``, when the disk is full then; or who is killed (SIGKILL): the ``trainer`` then, the ``sampler``
when it is to give the first shard the policy's hash, or this process, the ``flow``, when it has. A run that waited for
the policy before it sampled would wait for ever. The stages that the log has of the round by then are printed.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from flows.remote.worker_process import WorkerProcess
from storage.errors import StorageFullError
from storage.log.store import Store


def arm(number: int, how: str) -> None:
    """Wraps the real call to a worker."""
    call, sampled, asked, named = WorkerProcess.call, asyncio.Semaphore(0), 0, 0

    async def waiting_call(self: WorkerProcess, method: str, **arguments: Any) -> Any:
        nonlocal asked, named
        own = method == "sample" and arguments["held_out"] and arguments["round"] == number
        if method == "finish_update":
            asked += 1
        if method == "save_update" and asked == number:
            for _ in range(2):  # shards
                await sampled.acquire()
            run = Store.open(self._arguments["root"]).run(self._arguments["run"])
            stages = {entry.key.stage for entry in run.entries(round=number) if entry.key is not None}
            sys.stdout.write(f"before the policy: {' '.join(sorted(stages))}\n")
            sys.stdout.flush()
            if how == "full":
                raise StorageFullError("no room left to write the checkpoint")
            if how == "trainer":
                os.kill(self.pid or 0, signal.SIGKILL)
        named += method == "name_shard"
        if (method, how, named) == ("name_shard", "sampler", 1):
            os.kill(self.pid or 0, signal.SIGKILL)
        answer = await call(self, method, **arguments)
        if (method, how) == ("name_shard", "flow"):
            os.kill(os.getpid(), signal.SIGKILL)
        if own:
            sampled.release()
        return answer

    WorkerProcess.call = waiting_call  # type: ignore[method-assign]


def main() -> None:
    """Waits as the first two arguments say, and runs the command line with the others."""
    arm(int(sys.argv[1]), sys.argv[2])
    sys.argv = ["rondo", *sys.argv[3:]]
    from flows.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
