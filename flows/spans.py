"""When work was done: spans ``[start, end]``, in seconds since the epoch, as workers report them (`flows.desk`)."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, Protocol

from flows.process import Progress

Span = tuple[float, float]


class Calls(Protocol):
    """A worker, wherever it is."""

    async def call(self, method: str, *, on_progress: Progress | None = None, **arguments: Any) -> Any:
        """The answer of one of its methods."""
        ...


async def timed(
    worker: Calls, method: str, *, on_progress: Progress | None = None, **arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """The answer of a worker's method, and what its entry keeps of the work: ``span`` and ``device``."""
    work: dict[str, Any] = {}

    def hear(figures: Mapping[str, Any]) -> None:
        if "span" in figures:
            work.update(figures)
        elif on_progress is not None:
            on_progress(figures)

    return await worker.call(method, on_progress=hear, **arguments), work


def spans_of(metas: Iterable[Mapping[str, Any]]) -> Iterator[Span]:
    """The spans that entries have; those of earlier versions have none."""
    for meta in metas:
        yield from meta.get("busy") or ([meta["span"]] if "span" in meta else ())


def busy_seconds(spans: Iterable[Span]) -> float:
    """Time in which at least one of them was worked on."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def shared_seconds(some: Iterable[Span], others: Iterable[Span]) -> float:
    """Time in which at least one of each was worked on."""
    both = ((max(a, c), min(b, d)) for (a, b), (c, d) in product(list(some), list(others)))
    return busy_seconds((start, end) for start, end in both if end > start)
