"""Requests to one worker, several of them in progress at once if its methods take turns.

A request is ``{"id", "method", "arguments"}``. The messages that go out are any number of ``{"id", "progress"}``, then
``{"id", "result"}`` or ``{"id", "error": {"kind", "message"}}``. A method that is a generator function takes a turn
with each ``next`` and returns its result at the end; all others are done at once. The last progress before a result
says when and where the work was done: ``span``, in seconds since the epoch, and the worker's ``device``. An error whose
id is null ends all that is in progress, and the worker with it.
"""

import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import GeneratorType
from typing import Any, Protocol

from pydantic import validate_call
from pydantic_core import to_jsonable_python

from pipeline.errors import RondoError
from pipeline.records import storable
from storage.errors import StoreError

Send = Callable[[dict[str, Any]], None]
Together = Callable[[dict[str, Any]], AbstractContextManager[None]]
"""Around a request that is for all ranks of a worker: passes it on to the others, and waits for them."""


def alone(_request: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Does nothing around a request: the worker has no other ranks."""
    return nullcontext()


class Service(Protocol):
    """What a dispatcher serves: any object whose methods take and return what is JSON."""

    progress: Callable[..., None]
    """Tells the sender of the request what is being done; set anew for each request and each turn."""

    @property
    def device(self) -> str:
        """Says on which device it works."""
        ...


@dataclass(frozen=True)
class _InProgress:
    turns: Generator[object, None, Any]
    began: float


class Dispatcher:
    """Serves a worker's methods to whoever submits requests.

    Args:
        send: takes the messages that go out.
        together: entered around methods that are marked as collective, in ``flows/workers/base.py``.
    """

    def __init__(self, worker: Service, send: Send, together: Together = alone) -> None:
        self._worker, self._send, self._together = worker, send, together
        self._open: dict[int, _InProgress] = {}

    @property
    def busy(self) -> bool:
        """Says whether a request is in progress."""
        return bool(self._open)

    def submit(self, request: dict[str, Any]) -> None:
        """Begins a request, or answers it at once."""
        number, began = request["id"], time.time()
        self._worker.progress = partial(self._tell, number)
        try:
            method = public_method(self._worker, request["method"])
            collective = getattr(getattr(self._worker, request["method"]), "collective", False)
            with self._together(request) if collective else nullcontext():
                result = method(**request["arguments"])
        except Exception as error:
            self._fail(number, error)
            return
        if isinstance(result, GeneratorType):
            self._open[number] = _InProgress(result, began)
        else:
            self._answer(number, result, began)

    def step(self) -> None:
        """Takes one turn of each request in progress."""
        for number, work in list(self._open.items()):
            self._worker.progress = partial(self._tell, number)
            try:
                next(work.turns)
            except StopIteration as end:
                del self._open[number]
                self._answer(number, end.value, work.began)
            except Exception as error:
                del self._open[number]
                self._fail(number, error)

    def _tell(self, number: int, **told: Any) -> None:
        self._send({"id": number, "progress": told})

    def _answer(self, number: int, result: object, began: float) -> None:
        work = {"span": [began, time.time()], "device": self._worker.device}
        self._send({"id": number, "progress": work})
        self._send({"id": number, "result": to_jsonable_python(result)})

    def _fail(self, number: int, error: Exception) -> None:
        self._send({"id": number, "error": describe(error)})


def public_method(worker: object, name: str) -> Callable[..., Any]:
    """Finds a worker's method by its name; it checks its arguments and builds them from JSON."""
    method = None if name.startswith("_") else getattr(type(worker), name, None)
    if not callable(method):
        raise AttributeError(f"{type(worker).__name__} has no method '{name}'")
    checked: Callable[..., Any] = validate_call(getattr(worker, name))
    return checked


def describe(error: Exception) -> dict[str, str]:
    """Describes an error: a known one by its sentence alone, any other also by a traceback in the log."""
    known = isinstance(error, RondoError | StoreError)
    if not known:
        traceback.print_exc()
    return {"kind": type(error).__name__ if known else "WorkerError", "message": storable(str(error) or repr(error))}
