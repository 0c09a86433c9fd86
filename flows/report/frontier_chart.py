"""The chart of an experiment: a score against KL, or against another score, a curve for each arm, with intervals."""

from collections.abc import Sequence

import altair as alt

from flows.report.charts import Row

_WIDTH, _HEIGHT = 560, 360
_ROOM = 0.05


def frontier(title: str, rows: Sequence[Row], *, x: str, y: str) -> alt.LayerChart:
    """Draws a curve for each name, from round to round; curves of one arm share a colour, and the last point is large.

    Args:
        title: begins the description, which says where each curve ends.
        rows: in the order of a curve's points. Each has ``name``, ``arm``, ``number``, ``x``, ``y``, ``low`` and
            ``high`` (null for no interval) and ``last``.
        x, y: titles of the axes.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    base = alt.Chart().encode(
        x=alt.X("x:Q", title=x, scale=alt.Scale(domain=_domain(rows, "x"), nice=False)),
        color=alt.Color("arm:N", title=None, scale=alt.Scale(domain=arms), legend=alt.Legend(columns=2)),
        detail="name:N",
    )
    scale = alt.Scale(domain=_domain(rows, "y", "low", "high"), nice=False, zero=False)
    at = alt.Y("y:Q", title=y, scale=scale)
    layers = [
        base.mark_rule(opacity=0.35).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        base.mark_line(strokeWidth=1.3, opacity=0.8).encode(y=at, order="number:O"),
        base.mark_point().encode(
            y=at, size=alt.Size("last:N", legend=None, scale=alt.Scale(domain=[False, True], range=[14, 60]))
        ),
    ]
    ends = [row for row in rows if row["last"]]
    words = "; ".join(f"{row['name']} ends at {row['x']:.3g}, {row['y']:.3g}" for row in ends)
    return alt.LayerChart(
        layer=layers, data=alt.InlineData(values=[dict(row) for row in rows]), width=_WIDTH, height=_HEIGHT,
        description=f"{title} {words}.",
    )  # fmt: skip


def _domain(rows: Sequence[Row], *names: str) -> list[float]:
    values = [row[name] for row in rows for name in names if row[name] is not None]
    low, high = min(values), max(values)
    room = _ROOM * (high - low or 1.0)
    return [low - room, high + room]
