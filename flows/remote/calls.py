"""Typed calls to a worker, wherever it is.

    answer = await workers.sampler.call(SamplerWorker.sample, policy=policy, prompts=prompts, ...)

A method is named by itself: an editor leads from the call to it, and the type checker holds arguments and result
against it. What travels is JSON. Arguments become JSON here and are built again by the worker, results the other way.
"""

import inspect
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

Progress = Callable[[Mapping[str, Any]], None]
"""Hears what a worker tells while it works, such as ``{"done": 3, "total": 9, "tokens": 512}``."""

W = TypeVar("W")
P = ParamSpec("P")
Result = TypeVar("Result")


class Carrier(Protocol):
    """Carries requests to a worker: one process, its ranks, or replicas on Ray."""

    @property
    def capacity(self) -> int:
        """Says how many requests it takes at once."""
        ...

    async def start(self) -> None:
        """Starts what is not there yet."""
        ...

    async def call(
        self, method: str, *, on_progress: Progress | None = None, alone: bool = False, **arguments: Any
    ) -> Any:
        """Returns the answer of one method, as JSON has it."""
        ...

    async def stop(self) -> None:
        """Ends it."""
        ...


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """What a worker's method returned.

    Attributes:
        result: what it returned.
        work: what the entry of the work keeps: ``span``, its begin and end in seconds since the epoch, and ``device``.
    """

    result: Result
    work: dict[str, Any]


@dataclass(frozen=True)
class Client(Generic[W]):
    """Asks one kind of worker.

    Args:
        carrier: how requests get there.
        on_progress: hears what is told while the worker works.
        alone: whether a call waits until nothing else is in progress, and lets nothing else begin meanwhile.
        say: takes the sentences that a worker has for people: ``{"says": ...}`` among its progress.
    """

    carrier: Carrier
    on_progress: Progress | None = None
    alone: bool = False
    say: Callable[[str], None] = lambda text: None

    def asking(self, *, on_progress: Progress | None = None, alone: bool = False) -> "Client[W]":
        """Returns the same worker, asked in another way."""
        return replace(self, on_progress=on_progress, alone=alone)

    @overload
    async def call(
        self, method: Callable[Concatenate[W, P], Generator[Any, None, Result]], *args: P.args, **kwargs: P.kwargs
    ) -> Answer[Result]: ...

    @overload
    async def call(
        self, method: Callable[Concatenate[W, P], Result], *args: P.args, **kwargs: P.kwargs
    ) -> Answer[Result]: ...

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Answer[Any]:
        """Asks for one of the worker's methods.

        Raises:
            RondoError, StoreError: what the worker raised, with its own class and sentence.
            WorkerDiedError: the worker ended before it answered.
        """
        work: dict[str, Any] = {}

        def hear(told: Mapping[str, Any]) -> None:
            if "span" in told:
                work.update(told)
            elif "says" in told:
                self.say(told["says"])
            elif self.on_progress is not None:
                self.on_progress(told)

        signature, returns = _shape(method)
        arguments = signature.bind(None, *args, **kwargs).arguments
        plain = to_jsonable_python(dict(list(arguments.items())[1:]))  # without self, which is there
        result = await self.carrier.call(method.__name__, on_progress=hear, alone=self.alone, **plain)
        return Answer(returns.validate_python(result), work)


@cache
def _shape(method: Callable[..., Any]) -> tuple[inspect.Signature, TypeAdapter[Any]]:
    """Says how a method is called, and what builds its result: of a generator, what it returns at its end."""
    returned = get_type_hints(method)["return"]
    if get_origin(returned) is Generator:
        returned = get_args(returned)[2]
    return inspect.signature(method), TypeAdapter(returned)
