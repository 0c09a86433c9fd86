"""The charts of a round: how something is distributed, and reward against length. Their marks are links."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from flows.view.rendering import LINKS

_WIDTH, _HEIGHT = 480, 230
_POINT = 14
"""Square pixels."""


@dataclass(frozen=True)
class Bin:
    """A bin of a histogram.

    Attributes:
        low, high: its edges.
        count: the values in it.
        first, last: the smallest and largest of them.
        to: the query of the filter that has just these.
    """

    low: float
    high: float
    count: int
    first: float
    last: float
    to: str

    @property
    def span(self) -> str:
        """Says which values it has."""
        return f"{self.first:.4g}" if self.first == self.last else f"{self.first:.4g} to {self.last:.4g}"


def histogram(title: str, bins: Sequence[Bin], mean: float, unit: str) -> alt.LayerChart:
    """Draws how many completions have which values, with their mean as an upright mark."""
    rows = [{"low": b.low, "high": b.high, "count": b.count, "none": 0, "span": b.span, "to": b.to} for b in bins]
    room = 2 * (bins[0].high - bins[0].low) if len(bins) == 1 else 0  # so that the only bar is no wall
    scale = alt.Scale(domain=[bins[0].low - room, bins[-1].high + room], nice=False, zero=False)
    x = alt.X("low:Q", title=unit, scale=scale, axis=alt.Axis(tickCount=6, labelOverlap=True))
    ticks = alt.Axis(values=_whole_ticks(max(b.count for b in bins)), format=",d")
    y = alt.Y("count:Q", title="completions", axis=ticks)
    tip = [alt.Tooltip("span:N", title=unit), alt.Tooltip("count:Q", title="completions")]
    bars = _of(rows).mark_rect(style=LINKS, x2Offset=-1).encode(x=x, x2="high", y=y, y2="none", tooltip=tip)
    upright = _of([{"mean": mean}]).mark_rule(style="mean").encode(x=alt.X("mean:Q"))
    total = sum(b.count for b in bins)
    words = f"{title}. {total:,} values from {bins[0].first:.4g} to {bins[-1].last:.4g}, mean {mean:.4g}."
    return alt.LayerChart(layer=[bars, upright], width=_WIDTH, height=_HEIGHT, description=words)


def scatter(title: str, points: Sequence[dict[str, Any]]) -> alt.LayerChart:
    """Draws the score of each completion against its tokens.

    Args:
        points: ``tokens``, ``score`` and ``to``, the id of the prompt.
    """
    x = alt.X("tokens:Q", title="tokens", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=8))
    y = alt.Y("score:Q", title="score", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    marks = _of(points).mark_square(style=LINKS, size=_POINT, opacity=0.45).encode(x=x, y=y)
    lengths, scores = ([point[name] for point in points] for name in ("tokens", "score"))
    words = (
        f"{title}. {len(points):,} completions of {min(lengths)} to {max(lengths)} tokens, with scores from "
        f"{min(scores):.4g} to {max(scores):.4g}."
    )
    return alt.LayerChart(layer=[marks], width=_WIDTH, height=_HEIGHT, description=words)


def _whole_ticks(top: int) -> list[int]:
    """Returns at most six whole numbers from 0 on, in steps of 1, 2 or 5 times a power of ten."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in steps if top <= 5 * step)
    return list(range(0, top + 1, step))


def _of(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))
