"""The child's side of a worker process: one object, driven by lines of JSON.

    python -m flows.worker_main trainer '{"root": "runs", "run": "demo", ...}'

A request is ``{"id", "method", "arguments"}``; the answers are any number of ``{"id", "progress"}`` and then one of
``{"id", "result"}`` and ``{"id", "error": {"kind", "message"}}``. Only references and small figures travel: data
go through the store. Standard input carries the requests, a private copy of standard output the answers; what
libraries print goes to standard error, which the parent keeps in a log file.
"""

import importlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from pydantic import validate_call
from pydantic_core import to_jsonable_python

from pipeline.errors import RondoError
from storage.errors import StoreError

WORKERS = {
    "sampler": "flows.workers.sampler:SamplerWorker",
    "judge": "flows.workers.judge:JudgeWorker",
    "trainer": "flows.workers.trainer:TrainerWorker",
}
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
    while True:
        _serve(worker, json.loads(requests.get()), answers)


def private_stdout() -> TextIO:
    """The real standard output for answers alone; prints of libraries are sent to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return answers


def read_requests(requests: queue.SimpleQueue[str]) -> None:
    """Passes lines on; when the parent is gone, also by SIGKILL, the worker ends at once, whatever it is doing."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(ENDED_BY_PARENT)


def construct(kind: str, arguments: dict[str, Any]) -> object:
    """The worker of this kind."""
    module, name = WORKERS[kind].split(":")
    worker: object = getattr(importlib.import_module(module), name)(**arguments)
    return worker


def _serve(worker: object, request: dict[str, Any], answers: TextIO) -> None:
    number = request["id"]

    def progress(**figures: float | str) -> None:
        _send(answers, {"id": number, "progress": figures})

    try:
        method = public_method(worker, request["method"])
        result = method(**request["arguments"], progress=progress)
        _send(answers, {"id": number, "result": to_jsonable_python(result)})
    except Exception as error:
        _send(answers, {"id": number, "error": describe(error)})


def public_method(worker: object, name: str) -> Callable[..., Any]:
    """A worker's method by its name, which checks its arguments and builds them from JSON."""
    method = None if name.startswith("_") else getattr(type(worker), name, None)
    if not callable(method):
        raise AttributeError(f"{type(worker).__name__} has no method '{name}'")
    checked: Callable[..., Any] = validate_call(getattr(worker, name))
    return checked


def describe(error: Exception) -> dict[str, str]:
    """A user's error as its sentence alone; any other with its traceback in the log."""
    known = isinstance(error, RondoError | StoreError)
    if not known:
        traceback.print_exc()
    return {"kind": type(error).__name__ if known else "WorkerError", "message": str(error) or repr(error)}


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
