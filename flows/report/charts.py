"""The charts, each a function of plain rows: one definition for a report and for an interactive page.

No chart names a colour: the theme that draws it does, see ``rendering.py``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import numpy as np

Row = Mapping[str, Any]

INTERVAL = 1.96
"""Standard errors on each side that make a 95% interval of a normal estimate."""
MOST_CURVES = 3
"""As many as there are colours."""

_WIDTH, _HEIGHT = 480, 270
_MOST_MARKERS = 40
_MOST_LETTERS = 55
"""The letters of the curves' names that fit on one line."""
_BINS = 36
_LEAST_SPAN = 0.1
_EDGE = 0.005
"""Room for the line beyond 0% and 100%."""


@dataclass(frozen=True)
class Axes:
    """What the axes of a chart of curves mean.

    Attributes:
        unit: of the values, written beside the axis.
        x: what runs along the bottom; after a comma, which of them.
        percent: values are shares, shown as percentages.
        reference: a value to compare with, drawn as a dashed line.
        boundaries: positions of thin vertical lines, such as the beginnings of rounds.
        interval: how a 95% interval is drawn.
    """

    unit: str = ""
    x: str = "round"
    percent: bool = False
    reference: float | None = None
    boundaries: Sequence[float] = ()
    interval: Literal["band", "bar"] = "band"


def curves(title: str, rows: Sequence[Row], axes: Axes = Axes()) -> alt.LayerChart:
    """Draws curves over rounds or steps, in the order in which they first come.

    Args:
        title: begins the description, which then says where each curve begins and ends.
        rows: in ascending x. Each has ``curve``, its name, empty if there is one only; ``x``; ``y``, None for a gap;
            and for an estimate ``error``, its standard error, None if unknown.
    """
    names = list(dict.fromkeys(row["curve"] for row in rows))
    points = [{**row, **_interval(row)} for row in rows]
    xs = [row["x"] for row in rows]
    ys = [row[bound] for row in points for bound in ("low", "high") if row[bound] is not None]
    if axes.reference is not None:
        ys.append(axes.reference)
    x_axis = alt.Axis(format="d", tickCount=max(1, min(8, max(xs) - min(xs))))
    x = alt.X("x:Q", title=axes.x, scale=alt.Scale(domain=_x_domain(xs), nice=False), axis=x_axis)
    y_scale = alt.Scale(domain=_y_domain(ys, axes.percent), nice=False, zero=False)
    y_axis = alt.Axis(tickCount=5, format=".4~%") if axes.percent else alt.Axis(tickCount=5)
    y = alt.Y(type="quantitative", title=axes.unit or None, scale=y_scale, axis=y_axis)
    columns = len(names) if sum(map(len, names)) <= _MOST_LETTERS else 1
    legend = alt.Legend(columns=columns) if len(names) > 1 else None
    colour = alt.Color("curve:N", title=None, scale=alt.Scale(domain=names), legend=legend)
    base = alt.Chart().encode(x=x, y=y.field("y"), color=colour)

    layers = [*_rules(axes)]
    banded = any(row.get("error") is not None for row in rows)
    if banded:
        alone = len(set(xs)) == 1
        mark = base.mark_rule() if axes.interval == "bar" or alone else base.mark_area(style="interval")
        layers.append(mark.encode(y=y.field("low"), y2=alt.Y2("high")))
    by_round = axes.x == "round"
    layers.append(base.mark_line() if by_round else base.mark_line(strokeWidth=1.2))
    if by_round and len(set(xs)) <= _MOST_MARKERS:
        shape = alt.Shape("curve:N", title=None, scale=alt.Scale(domain=names), legend=legend)
        layers.append(base.mark_point().encode(shape=shape))
    return alt.LayerChart(
        layer=layers, data=alt.InlineData(values=points if banded else list(rows)), width=_WIDTH, height=_HEIGHT,
        description=_in_words(title, names, rows, axes),
    )  # fmt: skip


def _interval(row: Row) -> dict[str, float | None]:
    spread = INTERVAL * (row.get("error") or 0.0)
    return {"low": None, "high": None} if row["y"] is None else {"low": row["y"] - spread, "high": row["y"] + spread}


def _rules(axes: Axes) -> Iterable[alt.Chart]:
    if axes.reference is not None:
        yield (
            alt.Chart(alt.InlineData(values=[{"y": axes.reference}]))
            .mark_rule(style="reference")
            .encode(y=alt.Y("y:Q"))
        )
    if axes.boundaries:
        places = alt.InlineData(values=[{"x": place} for place in axes.boundaries])
        yield alt.Chart(places).mark_rule(style="boundary").encode(x=alt.X("x:Q"))


def _x_domain(xs: Sequence[float]) -> list[float]:
    """Returns the range of the positions with some room; a single position gets a range, too."""
    low, high = min(xs), max(xs)
    room = max(0.04 * (high - low), (1 - (high - low)) / 2)
    return [low - room, high + room]


def _y_domain(ys: Sequence[float], percent: bool) -> list[float]:
    """Returns the range of the values with some room, so wide that a tiny change does not fill the height."""
    low, high = min(ys), max(ys)
    least = _LEAST_SPAN * (1 if percent else max(abs(low), abs(high)) or 1)
    room = max(0.12 * (high - low), (least - (high - low)) / 2)
    low, high = low - room, high + room
    if percent and low < 0:
        return [-_EDGE, min(max(high, least), 1 + _EDGE)]
    return [min(low, 1 - least), min(high, 1 + _EDGE)] if percent else [low, high]


def _in_words(title: str, names: Sequence[str], rows: Sequence[Row], axes: Axes) -> str:
    def say(value: float) -> str:
        return f"{value:.1%}" if axes.percent else f"{value:.3g}"

    said, unit = [], axes.x.partition(",")[0]
    for name in names:
        found = [row for row in rows if row["curve"] == name and row["y"] is not None]
        if not found:
            continue
        first, last = found[0], found[-1]
        begin = f"{say(first['y'])} in {unit} {first['x']:g}"
        whole = begin if first is last else f"from {begin} to {say(last['y'])} in {last['x']:g}"
        said.append(f"{name} {whole}" if name else whole)
    return f"{title}. {'; '.join(said)}."


def histograms(title: str, scores_by_round: Mapping[int, Sequence[float]], unit: str) -> alt.FacetChart:
    """Draws a histogram of scores for each round, one below the other on the same scale, the mean marked.

    The histograms have equal areas.
    """
    everything = np.concatenate([np.asarray(scores, float) for scores in scores_by_round.values()])
    low, high = everything.min(), everything.max()
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    means = {number: float(np.mean(scores)) for number, scores in scores_by_round.items()}
    rows: list[Row] = [{"round": f"round {number}", "mean": mean} for number, mean in means.items()]
    for number, scores in scores_by_round.items():
        shares = np.histogram(scores, edges)[0] / len(scores)
        corners = zip(edges.tolist(), [*shares.tolist(), 0.0], strict=True)
        rows.extend({"round": f"round {number}", "score": edge, "share": share} for edge, share in corners)
    scale = alt.Scale(domain=[float(edges[0]), float(edges[-1])], nice=False)
    x = alt.X("score:Q", title=unit, scale=scale, axis=alt.Axis(grid=True, tickCount=8))
    share = alt.Y("share:Q").axis(None)
    base = alt.Chart().properties(width=_WIDTH - 80, height=max(36, 180 // len(means)))
    bars = base.transform_filter("isValid(datum.share)").mark_area(
        interpolate="step-after", line={"strokeWidth": 1}, fillOpacity=0.35
    )
    mean = base.transform_filter("isValid(datum.mean)").mark_rule(style="mean")
    header = alt.Header(labelAngle=0, labelAlign="left")
    by_round = alt.Row("round:N", title=None, sort=[f"round {number}" for number in means], header=header)
    layers = [bars.encode(x=x, y=share), mean.encode(x=alt.X("mean:Q"))]
    layered = alt.LayerChart(layer=layers, data=alt.InlineData(values=rows))
    words = ", ".join(f"round {number}: {mean:.3g}" for number, mean in means.items())
    return layered.facet(row=by_round, spacing=6).properties(description=f"{title}. Mean by round: {words}.")


def reliability(title: str, rows: Sequence[Row]) -> alt.LayerChart:
    """Draws how often a judge is right against how sure it is, from 1/2 to 1.

    On the dashed diagonal it is right as often as it says.

    Args:
        rows: of each bin ``confidence`` and ``accuracy``, both shares, and ``pairs``, which the dot grows with.
    """
    lowest = min(0.48, *(row["accuracy"] - 0.02 for row in rows))
    percent = alt.Axis(format=".4~%", tickCount=5, grid=True)
    confidence = alt.X("confidence:Q").scale(domain=[0.48, 1.02], nice=False).axis(percent)
    accuracy = alt.Y("accuracy:Q").scale(domain=[lowest, 1.02], nice=False, zero=False).axis(percent)
    ends = alt.InlineData(values=[{"confidence": end, "accuracy": end} for end in (0.5, 1.0)])
    diagonal = alt.Chart(ends).mark_line(style="reference").encode(x=confidence, y=accuracy)
    base = alt.Chart().encode(x=confidence, y=accuracy)
    dots = base.mark_point().encode(size=alt.Size("pairs:Q", legend=None).scale(domainMin=0, range=[25, 300]))
    words = (f"{row['pairs']} pairs, {row['confidence']:.0%} sure, {row['accuracy']:.0%} right" for row in rows)
    return alt.LayerChart(
        layer=[diagonal, base.mark_line(opacity=0.6), dots], data=alt.InlineData(values=list(rows)), width=400,
        height=320, description=f"{title}. {'; '.join(words)}.",
    )  # fmt: skip


def side_by_side(title: str, panels: Mapping[str, alt.LayerChart]) -> alt.HConcatChart:
    """Draws charts of curves beside each other, each below its name."""
    small = [
        panel.properties(title=alt.Title(name, frame="group", offset=14), width=250, height=170)
        for name, panel in panels.items()
    ]
    heading = alt.Title(title, fontSize=15, fontWeight="bold")
    said = " ".join(str(panel.description) for panel in panels.values())
    return alt.hconcat(*small, spacing=70, bounds="flush").properties(title=heading, description=f"{title}. {said}")
