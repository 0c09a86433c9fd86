"""The child's side of a worker process: one object, driven by lines of JSON.

    python -m flows.remote.worker_main trainer '{"root": "runs", "run": "demo", ...}'

Requests and answers are those of `flows.remote.dispatcher`. Only references and small metrics travel: data go through
the store. `serve` is the loop of every worker: of one in a process of its own, here or beside a Ray actor, and of rank
zero of several (`flows.remote.rank_main`).
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

from flows.host.processes import descendants, kill
from flows.remote.dispatcher import Dispatcher, Service, Together, alone, describe
from flows.workers.base import Worker
from flows.workers.judge import JudgeWorker
from flows.workers.rejudge import RejudgeWorker
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from flows.workers.trial import TrialWorker, VllmTrialWorker

WORKERS: dict[str, type[Worker]] = {
    "sampler": SamplerWorker, "judge": JudgeWorker, "trainer": TrainerWorker, "trial": TrialWorker,
    "vllm_trial": VllmTrialWorker, "rejudge": RejudgeWorker,
}  # fmt: skip
ENDED_BY_PARENT = 0


def main() -> None:
    """Serves one worker until the parent closes the pipe."""
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    serve(Pipe(), lambda: WORKERS[kind](**arguments))


class Pipe:
    """The parent's requests and this process's answers, on private copies of standard input and output.

    What libraries print goes to standard error, which the parent keeps in a log file. Standard input is empty: a forked
    child closes ``sys.stdin`` first, and would wait for ever if a thread read from it.
    """

    def __init__(self) -> None:
        self.descriptor = os.dup(0)
        self._answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()
        self._nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(self._nothing, 0)
        os.dup2(2, 1)

        def let_go() -> None:  # a forked child that outlives this process must not hold its pipes open
            self.keep_silent()
            os.dup2(self._nothing, self.descriptor)

        os.register_at_fork(after_in_child=let_go)

    def send(self, message: dict[str, Any]) -> None:
        """Sends an answer or progress; from any thread."""
        with self._lock:
            self._answers.write(json.dumps(message) + "\n")
            self._answers.flush()

    def keep_silent(self) -> None:
        """Lets go of the answers: if several processes have this pipe, its end must be that of the one that talks."""
        os.dup2(self._nothing, self._answers.fileno())

    def listen(self, at_end: Callable[[], None]) -> queue.SimpleQueue[str]:
        """Gives requests as they come; when the parent is gone, even by SIGKILL, this process ends at once.

        The parts of an engine on several GPUs are ended too: they notice by themselves, but not while they load or
        compile.

        Args:
            at_end: called before that end.
        """
        requests: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read() -> None:
            with os.fdopen(self.descriptor, encoding="utf-8") as lines:
                for line in lines:
                    requests.put(line)
                at_end()
                kill(descendants(os.getpid()))
                os._exit(ENDED_BY_PARENT)

        threading.Thread(target=read, daemon=True).start()
        return requests


def serve(
    pipe: Pipe,
    construct: Callable[[], Service],
    together: Together = alone,
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Serves one worker until the parent closes the pipe; returns only if it cannot be constructed.

    Args:
        together: see `Dispatcher`.
        at_end: called when the parent has closed the pipe.
    """
    requests = pipe.listen(at_end)
    try:
        worker = construct()
    except Exception as error:
        pipe.send({"id": 0, "error": describe(error)})
        return
    pipe.send({"id": 0, "result": None})
    dispatcher = Dispatcher(worker, pipe.send, together)
    while True:
        while not dispatcher.busy or not requests.empty():
            dispatcher.submit(json.loads(requests.get()))
        dispatcher.step()


if __name__ == "__main__":
    main()
