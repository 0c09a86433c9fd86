"""A rank of a worker, of which torchrun starts several: the first one talks to the parent, the others do as it does.

    RONDO_MEETING=/tmp/empty python -m flows.remote.rendezvous ... -m flows.remote.rank_main trainer '{"root": ...}'

The first rank speaks with the parent as `flows.remote.worker_main` does. Requests that concern all ranks it passes on,
as JSON in a key-value store: a file, or where ranks are on several machines one that the flow keeps. An error of
whichever rank is the answer, once; the parent then ends them all, as some may be waiting for one that failed. All end
when the parent does, or torchrun, also by SIGKILL.
"""

import json
import os
import queue
import select
import sys
import threading
import time
from typing import Any, TextIO

from pydantic_core import to_jsonable_python
from torch.distributed import Store

from flows.remote.dispatcher import describe, public_method, work_done
from flows.remote.worker_main import ENDED_BY_PARENT, construct, private_stdout, read_requests
from pipeline.model.distributed import meeting

POLL_SECONDS = 0.01
TORCHRUN_SECONDS = 3.0
"""More than torchrun takes to see that a rank died, and to end the others."""

ERROR = "error"


def main() -> None:
    """Serves one worker until the parent closes the pipe."""
    answers = private_stdout()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    if rank == 0:
        _First(answers, size).serve(kind, arguments)
    else:
        answers.close()
        _follow(rank, kind, arguments)


def _end_with_parent() -> None:
    """Ends this process when no one can write to its standard input any more, or when torchrun is gone."""
    torchrun = os.getppid()
    hang_up = select.poll()
    hang_up.register(0, 0)  # what is written there is for the first rank to read
    while not hang_up.poll(500) and os.getppid() == torchrun:
        pass
    os._exit(ENDED_BY_PARENT)


def _board() -> Store:
    """What the ranks write to each other; each thread has one of its own, as one that waits would hold up another."""
    return meeting("board")


def _wait(board: Store, keys: list[str]) -> None:
    while not board.check(keys):
        time.sleep(POLL_SECONDS)


def _explain(error: Exception) -> dict[str, str]:
    """An error as the parent takes it. Another rank that died is no error of this one: then torchrun ends this one."""
    described = describe(error)
    if described["kind"] == "WorkerError":
        time.sleep(TORCHRUN_SECONDS)
    return described


class _First:
    """The rank that the parent talks to."""

    def __init__(self, answers: TextIO, size: int) -> None:
        self._answers, self._size = answers, size
        self._lock = threading.Lock()
        self._current: int | None = 0  # the request that waits for its answer
        self._passed = 0  # requests that were passed on

    def serve(self, kind: str, arguments: dict[str, Any]) -> None:
        requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
        threading.Thread(target=self._hear_errors, daemon=True).start()
        board = _board()
        try:
            worker = construct(kind, arguments)
            _wait(board, self._done(0))
            self._answer({"result": None})
            while True:
                self._serve(worker, json.loads(requests.get()), board)
        except Exception as error:
            self._answer({"error": _explain(error)})
        threading.Event().wait()  # for the parent, which ends all ranks

    def _serve(self, worker: Any, request: dict[str, Any], board: Store) -> None:
        number = self._current = request["id"]

        def progress(**told: Any) -> None:
            with self._lock:
                self._send({"id": number, "progress": told})

        began = time.time()
        method = public_method(worker, request["method"])
        collective = getattr(getattr(worker, request["method"]), "collective", False)
        if collective:
            self._passed += 1
            board.set(f"request {self._passed}", json.dumps(request))
        worker.progress = progress
        result = method(**request["arguments"])
        if collective:
            _wait(board, self._done(self._passed))
        progress(**work_done(worker, began))
        self._answer({"result": to_jsonable_python(result)})

    def _done(self, number: int) -> list[str]:
        return [f"done {number} {rank}" for rank in range(1, self._size)]

    def _hear_errors(self) -> None:
        board = _board()
        _wait(board, [ERROR])
        error = json.loads(board.get(ERROR))
        while not self._answer({"error": error}):
            time.sleep(POLL_SECONDS)

    def _answer(self, answer: dict[str, Any]) -> bool:
        """Answers the current request, unless it has its answer already."""
        with self._lock:
            if self._current is None:
                return False
            self._send({"id": self._current, **answer})
            self._current = None
            return True

    def _send(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()


def _follow(rank: int, kind: str, arguments: dict[str, Any]) -> None:
    """Does what the first rank passes on, without a word, unless it fails."""
    board = _board()
    number = 0
    try:
        worker = construct(kind, arguments)
        while True:
            board.set(f"done {number} {rank}", "")
            number += 1
            _wait(board, [f"request {number}"])
            request = json.loads(board.get(f"request {number}"))
            public_method(worker, request["method"])(**request["arguments"])
    except Exception as error:
        board.set(ERROR, json.dumps(_explain(error)))
    threading.Event().wait()


if __name__ == "__main__":
    main()
