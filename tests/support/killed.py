"""Runs the command line in this process, and kills the process (SIGKILL) at a chosen point of a chosen stage.

    python -m support.killed STAGE:ROUND:WHEN rondo-arguments...

WHEN is ``before`` the commit of the stage's first shard in that round, ``after`` it, or ``during`` the work, at the
second message of progress of the worker's method of that name; with ``worker`` it is the worker that is killed there,
once, and not this process. With ``asked`` it is killed, once, when it is asked for that.
With ``called`` it is this process that is killed when a worker is asked for that, and with ``answered`` when it has
answered.
With ``rank`` it is the last rank of the update that is killed, once, when the first state of the update is committed.
With ``held`` nothing is killed: the call to the worker does not return, until somebody ends the run.
"""

import asyncio
import os
import signal
import sys
from typing import Any

import psutil

from flows.remote.worker_process import WorkerProcess
from storage.log.manifest import Key
from storage.log.writer import Writer


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _last_rank() -> psutil.Process:
    """The rank with the greatest number among those that work under the root that this command line ends with."""
    found = [one for one in psutil.process_iter(["cmdline"]) if "flows.remote.rank_main" in (one.info["cmdline"] or ())]
    ranks = [one for one in found if sys.argv[-1] in str(one.info["cmdline"]) and "RANK" in one.environ()]
    return max(ranks, key=lambda rank: int(rank.environ()["RANK"]))


def arm(stage: str, number: int, when: str) -> None:
    """Wraps the real commit, or the real call to a worker, with the kill."""
    commit, call = Writer.commit, WorkerProcess.call
    messages = current = 0
    victims: list[psutil.Process] = []

    def killing_commit(self: Writer, key: Key, *arguments: Any, **named: Any) -> Any:
        hit = (key.stage, key.round) == (stage, number)
        if hit and when == "before":
            _die()
        entry = commit(self, key, *arguments, **named)
        if hit and when == "after":
            _die()
        if hit and when == "rank" and not victims:
            victims.append(_last_rank())
            victims[0].kill()
        return entry

    async def killing_call(self: WorkerProcess, method: str, **arguments: Any) -> Any:
        nonlocal current
        hear = arguments.get("on_progress")
        current = arguments.get("round", current)  # what goes on with an update does not say of which round
        if method != stage or current != number:
            return await call(self, method, **arguments)
        if when == "held":
            sys.stdout.write("held\n")
            sys.stdout.flush()
            await asyncio.sleep(3600)

        def count(metrics: Any) -> None:
            nonlocal messages
            if hear is not None:
                hear(metrics)
            messages += 1
            if messages == 2:
                os.kill(self.pid or 0 if when == "worker" else os.getpid(), signal.SIGKILL)

        return await call(self, method, **{**arguments, "on_progress": count})

    Writer.commit = killing_commit  # type: ignore[method-assign]
    if when in ("during", "worker", "held"):
        WorkerProcess.call = killing_call  # type: ignore[method-assign]


def arm_asked(asked: str, number: int) -> None:
    """Wraps the real call to a worker: it is killed, once, when it is asked for this."""
    call, current, done = WorkerProcess.call, 0, False

    async def killing_call(self: WorkerProcess, method: str, **arguments: Any) -> Any:
        nonlocal current, done
        current = arguments.get("round", current)
        if method == asked and current == number and self.pid and not done:
            done = True
            os.kill(self.pid, signal.SIGKILL)
        return await call(self, method, **arguments)

    WorkerProcess.call = killing_call  # type: ignore[method-assign]


def arm_called(asked: str, number: int, when: str) -> None:
    """Wraps the real call to a worker: this process is killed before it, or after it."""
    call, current = WorkerProcess.call, 0

    async def killing_call(self: WorkerProcess, method: str, **arguments: Any) -> Any:
        nonlocal current
        current = arguments.get("round", current)
        hit = (method, current) == (asked, number)
        if hit and when == "called":
            _die()
        answer = await call(self, method, **arguments)
        if hit:
            _die()
        return answer

    WorkerProcess.call = killing_call  # type: ignore[method-assign]


def main() -> None:
    """Kills as the first argument says, and runs the command line with the others."""
    stage, number, when = sys.argv[1].split(":")
    if when == "asked":
        arm_asked(stage, int(number))
    elif when in ("called", "answered"):
        arm_called(stage, int(number), when)
    else:
        arm(stage, int(number), when)
    sys.argv = ["rondo", *sys.argv[2:]]
    from flows.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
