"""What a language model's replies took: how many, which were there already, their tokens, and their price."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the replies took that something rests on; None is not measured.

    Of a reply that several completions share, each has an equal part, so that sums over completions count it once.

    Attributes:
        replies: how many; those that could not be read are among them, and requests without a reply are not.
        replies_cached: those of them that were there already: from the store, or given to the same request just before.
        tokens_in, tokens_out: tokens read and written for all of them, whenever that was, as the endpoint states it.
        paid_tokens_in, paid_tokens_out: those of the replies that were asked for anew.
        cost: of these, at the price that the recipe gives, in its currency.
    """

    replies: float = 0.0
    replies_cached: float = 0.0
    tokens_in: float | None = 0.0
    tokens_out: float | None = 0.0
    paid_tokens_in: float | None = 0.0
    paid_tokens_out: float | None = 0.0
    cost: float | None = 0.0

    def shared_by(self, completions: int) -> "Usage":
        """Returns the part of each of so many completions."""
        whole = asdict(self)
        parts: dict[str, Any] = {name: None if value is None else value / completions for name, value in whole.items()}
        return Usage(**parts)


NOTHING = Usage()
"""What is taken if nothing is asked."""


def total(usages: Iterable[Usage]) -> Usage:
    """Adds up; what is not measured of one is not measured of all."""
    rows = [asdict(usage) for usage in usages]
    columns = {name: [row[name] for row in rows] for name in asdict(Usage())}
    sums: dict[str, Any] = {name: None if None in found else float(sum(found)) for name, found in columns.items()}
    return Usage(**sums)


def usage_of_reply(
    tokens_in: int | None, tokens_out: int | None, *, cached: bool, price: tuple[float, float] | None
) -> Usage:
    """Returns what one reply took.

    Args:
        price: of a million tokens read, and of a million written; None if nobody knows.
    """
    cost = None
    if price is not None and tokens_in is not None and tokens_out is not None:
        cost = (tokens_in * price[0] + tokens_out * price[1]) / 1e6
    return Usage(
        replies=1.0,
        replies_cached=float(cached),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        paid_tokens_in=0.0 if cached else tokens_in,
        paid_tokens_out=0.0 if cached else tokens_out,
        cost=0.0 if cached else cost,
    )


def by_judge(judgments: Iterable[tuple[str, Usage | None]]) -> dict[str, Usage]:
    """Adds up by the judge's name; judges that ask no language model are left out."""
    found: dict[str, list[Usage]] = {}
    for name, usage in judgments:
        if usage is not None:
            found.setdefault(name, []).append(usage)
    return {name: total(usages) for name, usages in found.items()}


def usage_in(row: Mapping[str, Any]) -> Usage | None:
    """Reads what a judgment took from its row; None if the judge asks no language model, or its version kept none."""
    if row.get("replies") is None:
        return None
    return Usage(**{name: row[name] for name in asdict(Usage())})
