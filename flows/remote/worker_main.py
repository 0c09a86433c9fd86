"""The child's side of a worker process: one object, driven by lines of JSON.

    python -m flows.remote.worker_main trainer '{"root": "runs", "run": "demo", ...}'

Requests and answers are those of `flows.remote.dispatcher`. Only references and small metrics travel: data go through
the store. Standard input carries the requests, a private copy of standard output the answers; what libraries print goes
to standard error, which the parent keeps in a log file.
"""

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

from flows.host.processes import descendants, kill
from flows.remote.dispatcher import Dispatcher, Service, describe
from flows.workers.base import Worker
from flows.workers.judge import JudgeWorker
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker

WORKERS: dict[str, type[Worker]] = {"sampler": SamplerWorker, "judge": JudgeWorker, "trainer": TrainerWorker}
ENDED_BY_PARENT = 0


def main() -> None:
    """Serves one worker until the parent closes the pipe."""
    answers = private_stdout()
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        worker = construct(kind, arguments)
    except Exception as error:
        _send(answers, {"id": 0, "error": describe(error)})
        return
    _send(answers, {"id": 0, "result": None})
    dispatcher = Dispatcher(worker, lambda message: _send(answers, message))
    while True:
        while not dispatcher.busy or not requests.empty():
            dispatcher.submit(json.loads(requests.get()))
        dispatcher.step()


def private_stdout() -> TextIO:
    """The real standard output for answers alone; prints of libraries are sent to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return answers


def read_requests(requests: queue.SimpleQueue[str]) -> None:
    """Passes lines on; when the parent is gone, also by SIGKILL, the worker ends at once, whatever it is doing.

    So do the parts of an engine on several GPUs: they notice by themselves, but not while they load or compile.
    """
    for line in sys.stdin:
        requests.put(line)
    kill(descendants(os.getpid()))
    os._exit(ENDED_BY_PARENT)


def construct(kind: str, arguments: dict[str, Any]) -> Service:
    """The worker of this kind."""
    return WORKERS[kind](**arguments)


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
