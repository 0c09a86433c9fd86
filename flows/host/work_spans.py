"""When work was done: spans ``[start, end]``, in seconds since the epoch, as workers report them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Span = tuple[float, float]


def spans_of(metas: Iterable[Mapping[str, Any]]) -> Iterator[Span]:
    """Yields the spans that entries have; those of earlier versions have none."""
    for meta in metas:
        yield from meta.get("busy") or ([meta["span"]] if "span" in meta else ())


def busy_seconds(spans: Iterable[Span]) -> float:
    """Returns the seconds that at least one span covers."""
    return sum(end - start for start, end in union(spans))


def shared_seconds(some: Iterable[Span], others: Iterable[Span]) -> float:
    """Returns the seconds that at least one span of each group covers."""
    total, ours, theirs = 0.0, union(some), union(others)
    while ours and theirs:
        (start, end), (other_start, other_end) = ours[-1], theirs[-1]  # the latest, from the end to the beginning
        total += max(0.0, min(end, other_end) - max(start, other_start))
        (ours if start >= other_start else theirs).pop()
    return total


def union(spans: Iterable[Span]) -> list[Span]:
    """Returns the times that the spans cover, ascending."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found
