"""Charts of the page that a report has not: those of any answer, of which only the columns' places are known."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

import altair as alt

from flows.host.text import visible
from flows.report.charts import INTERVAL, MOST_CURVES
from pipeline.errors import ConfigError

Row = Sequence[Any]
_Kind = Literal["quantitative", "temporal", "nominal"]

ERROR = "error"
"""The column that is the standard error of the second one."""
_MOST_COLOURS = 10
_MOST_MARKERS = 120
_LETTERS = 60
_WIDTH, _HEIGHT = 960, 380


def answer_chart(
    columns: Sequence[str], rows: Sequence[Row], form: Literal["line", "bar", "scatter"]
) -> alt.LayerChart:
    """Draws rows by the places of their columns: the first runs along the bottom, the second upwards.

    A column ``error`` is the standard error of the second, drawn as a 95% interval; the first of those that are left is
    the colour.

    Args:
        rows: each has a value for each column.

    Raises:
        ConfigError: there is nothing to draw, or the columns are not of a kind that can be drawn.
    """
    points, kind, colour = _points([_text(name) for name in columns], rows)
    x_title, y_title = _text(columns[0]), _text(columns[1])
    names = list(dict.fromkeys(point["colour"] for point in points)) if colour else []
    if len(names) > _MOST_COLOURS:
        raise ConfigError(
            f"column {colour} has {len(names)} values, and a chart tells {_MOST_COLOURS} colours apart: leave some out"
        )
    if form == "bar" or kind == "nominal":
        x = alt.X("x", type="ordinal" if kind == "quantitative" else "nominal", title=x_title, sort=None)
    else:
        whole = kind == "quantitative" and all(float(point["x"]).is_integer() for point in points)
        axis = alt.Axis(format="d", tickMinStep=1) if whole else alt.Axis()
        x = alt.X("x", type=kind, title=x_title, scale=alt.Scale(zero=False, nice=False, padding=16), axis=axis)
    y = alt.Y("y", type="quantitative", title=y_title, scale=alt.Scale(zero=form == "bar"))
    tips = [alt.Tooltip("x", type=kind, title=x_title), alt.Tooltip("y", type="quantitative", title=y_title)]
    base = alt.Chart().encode(x=x, y=y, **_coloured(colour, names))
    if colour:
        tips.append(alt.Tooltip("colour", type="nominal", title=colour))
    layers = _layers(base, form, tips, points, grouped=bool(colour))
    known = [point["y"] for point in points]
    words = f"{y_title} by {x_title}, {len(points)} points from {min(known):.3g} to {max(known):.3g}"
    return alt.LayerChart(
        layer=layers, data=alt.InlineData(values=points), width=_WIDTH, height=_HEIGHT,
        description=words + (f", coloured by {colour}: {', '.join(names)}." if colour else "."),
    )  # fmt: skip


def _layers(
    base: alt.Chart, form: str, tips: list[alt.Tooltip], points: Sequence[Mapping[str, Any]], *, grouped: bool
) -> list[alt.Chart]:
    low, high = alt.Y("low", type="quantitative"), alt.Y2("high")
    layers = []
    if any("low" in point for point in points):
        mark = base.mark_area(style="interval") if form == "line" else base.mark_rule()
        layers.append(mark.encode(y=low, y2=high))
    if form == "bar":
        offset = {"xOffset": alt.XOffset("colour:N")} if grouped else {}
        return [base.mark_bar().encode(tooltip=tips, **offset), *(layer.encode(**offset) for layer in layers)]
    if form == "line":
        layers.append(base.mark_line())
        if len(points) > _MOST_MARKERS:
            return layers
    return [*layers, base.mark_point().encode(tooltip=tips)]


def _coloured(colour: str | None, names: Sequence[str]) -> dict[str, Any]:
    if colour is None:
        return {}
    # The theme has as many colours as a chart of curves; beyond them the library's own, which both modes can show.
    scale = alt.Scale(domain=names) if len(names) <= MOST_CURVES else alt.Scale(domain=names, scheme="tableau10")
    return {"color": alt.Color("colour:N", title=None, scale=scale, legend=alt.Legend(columns=3))}


def _points(columns: Sequence[str], rows: Sequence[Row]) -> tuple[list[dict[str, Any]], _Kind, str | None]:
    """Returns what is drawn, the type of the first column, and the name of the column that is the colour."""
    if len(columns) < 2:
        raise ConfigError(f"a chart needs two columns, and the answer has one: {columns[0]}")
    others = range(2, len(columns))
    error = next((place for place in others if columns[place] == ERROR), None)
    colour = next((place for place in others if place != error), None)
    points = []
    for row in rows:
        x, y = row[0], _number(row[1])
        if y is None and row[1] is not None and not isinstance(row[1], float):
            raise ConfigError(f"column {columns[1]} is no number ({_text(row[1])}), and a chart needs one there")
        if x is None or y is None or (isinstance(x, float) and not math.isfinite(x)):
            continue
        point = {"x": x, "y": y} | ({} if colour is None else {"colour": _text(row[colour])})
        spread = None if error is None else _number(row[error])
        if spread is not None:
            point |= {"low": y - INTERVAL * spread, "high": y + INTERVAL * spread}
        points.append(point)
    if not points:
        raise ConfigError("there is nothing to draw: no row has a value in both of its first columns")
    kind = _kind([point["x"] for point in points])
    for point in points:
        point["x"] = _place(point["x"], kind)
    return points, kind, None if colour is None else columns[colour]


def _kind(values: Sequence[Any]) -> _Kind:
    if all(_number(value) is not None for value in values):
        return "quantitative"
    return "temporal" if all(isinstance(value, date | datetime) for value in values) else "nominal"


def _place(value: Any, kind: _Kind) -> Any:
    if kind == "quantitative":
        number = float(value)
        return int(number) if number.is_integer() else number
    return value.isoformat() if kind == "temporal" else _text(value)


def _text(value: Any) -> str:
    text = "null" if value is None else visible(str(value)[: _LETTERS + 1])
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return None
    return float(value)
