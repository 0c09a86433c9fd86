"""The chart of an experiment: a score against KL, or against another score, a curve for each arm, with intervals."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt

from flows.report.charts import Row

_WIDTH, _HEIGHT = 560, 360
_ROOM = 0.05
_ENDS = 2
"""Points of a curve with a single round: before it and after."""
_DIGITS = 4


def frontier(title: str, rows: Sequence[Row], *, x: str, y: str, roots: bool = False) -> alt.LayerChart:
    """Draws a curve for each arm and value of its sweep, from round to round; the last point of each is large.

    Of arms with a single round the ends are joined in place of the rounds, as nothing was measured between these.

    Args:
        title: begins the description, which says where each curve ends.
        rows: in the order of a curve's points. Each has ``name`` of the curve, ``arm``, which gives it its colour,
            ``number``, ``x``, ``y``, ``low`` and ``high`` (None for no interval) and ``last``.
        x, y: titles of the axes.
        roots: whether x is drawn by its square root, as small divergences are dense.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    scale = alt.Scale(type="sqrt" if roots else "linear", domain=_domain(rows, "x"), nice=False, zero=False)
    legend = alt.Legend(columns=2)
    base = alt.Chart().encode(
        x=alt.X("x:Q", title=x, scale=scale),
        color=alt.Color("arm:N", title=None, scale=alt.Scale(domain=arms), legend=legend),
    )
    height = alt.Scale(domain=_domain(rows, "y", "low", "high"), nice=False, zero=False)
    at = alt.Y("y:Q", title=y, scale=height)
    size = alt.Size("last:N", legend=None, scale=alt.Scale(domain=[False, True], range=[16, 70]))
    shape = alt.Shape("arm:N", title=None, scale=alt.Scale(domain=arms), legend=legend)
    layers = [
        base.mark_rule(opacity=0.35).encode(y=alt.Y("low:Q", scale=height), y2="high:Q"),
        base.mark_line(strokeWidth=1.3, opacity=0.8)
        .transform_filter("datum.line !== null")
        .encode(y=at, detail="line:N", order="place:Q"),
        base.mark_point().encode(y=at, size=size, shape=shape),
    ]
    ends = [row for row in rows if row["last"]]
    words = "; ".join(f"{row['name']} ends at {row['x']:.3g}, {row['y']:.3g}" for row in ends)
    return alt.LayerChart(
        layer=layers, data=alt.InlineData(values=_joined(rows)), width=_WIDTH, height=_HEIGHT,
        description=f"{title} {words}.",
    )  # fmt: skip


def _joined(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns what is drawn of each row, with the line that it is on, if any, and its place there."""
    counts = Counter(row["name"] for row in rows)
    drawn = []
    for row in rows:
        several = counts[row["name"]] > _ENDS
        line = row["name"] if several else row["arm"] if row["last"] else None
        shown = {name: row[name] for name in ("arm", "x", "y", "low", "high", "last")}
        rounded = {name: round(value, _DIGITS) if isinstance(value, float) else value for name, value in shown.items()}
        drawn.append({**rounded, "line": line, "place": row["number"] if several else row["x"]})
    return drawn


def _domain(rows: Sequence[Row], *names: str) -> list[float]:
    values = [row[name] for row in rows for name in names if row[name] is not None]
    low, high = min(values), max(values)
    room = _ROOM * (high - low or 1.0)
    return [low - room, high + room]
