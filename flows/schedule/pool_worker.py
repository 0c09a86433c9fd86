"""A Prefect worker whose runs end first, and in order, when it is told to end, such as by a container's engine.

    python -m flows.schedule.pool_worker --pool rondo --type process

The arguments go to ``prefect worker start``. By itself it would kill its runs: the store's log would stay open, and
Prefect would show them Running for ever. Nothing here imports Prefect.
"""

import contextlib
import subprocess
import sys
from collections.abc import Sequence

import psutil

from flows.errors import InterruptedRunError
from flows.host.processes import end_trees
from flows.host.signals import orderly_end

RUN_GRACE_SECONDS = 60.0  # to end its workers and to close its log
GRACE_SECONDS = 15.0


def work(command: Sequence[str]) -> int:
    """Runs a worker until it ends by itself, or this process is told to end.

    Returns:
        Its exit status; 0 if it was told to end.
    """
    with subprocess.Popen(command, start_new_session=True) as worker:
        try:
            with orderly_end("the worker was told to end"):
                return worker.wait()
        except InterruptedRunError:
            end_worker(psutil.Process(worker.pid))
            return 0


def end_worker(worker: psutil.Process) -> None:
    """Ends a worker. Its runs end first: they close their logs, and tell the server of it."""
    with contextlib.suppress(psutil.Error):
        end_trees(worker.children(), RUN_GRACE_SECONDS)
    end_trees([worker], GRACE_SECONDS)


if __name__ == "__main__":
    sys.exit(work([sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]))
