"""The timeline of rounds as a chart: a lane for each part on each of its devices, a bar for each piece of work."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from flows.report.timeline import KINDS, Kind, Lane, Span, Timeline, duration

_LANE = 0.72
"""Height of a lane's bars, as a share of the lane."""
_WIDTH, _LANE_HEIGHT = 860, 42
"""Pixels."""
_MOST_TRACKS = 4
_MOST_BARS = 300
"""In a track of a lane; if there are more, those that would touch are drawn as one, so that the page stays light."""


def gantt(title: str, found: Timeline) -> alt.LayerChart:
    """Draws what ran when: a row for each lane, a bar for each piece, coloured by what it worked for.

    A piece that belongs to another round than the one in which it ran is pale. A stretch that was cut out is a dashed
    line that says how long it was.
    """
    lanes = len(found.lanes)
    height = lanes + (0.5 if found.cuts else 0.0)  # with a line for what was cut out
    axis = alt.Axis(grid=True, tickCount=12)
    start = alt.X("start:Q", title="seconds", scale=alt.Scale(domain=[0, found.seconds or 1], nice=False), axis=axis)
    top = alt.Y("top:Q", scale=alt.Scale(domain=[height, 0], nice=False), axis=None)
    text = alt.Text("text:N")

    cuts = [
        {"start": cut.start, "top": lanes + 0.25, "text": f"cut: {duration(cut.seconds)} in which nothing ran"}
        for cut in found.cuts
    ]
    begins = dict(zip((0.0, *found.ends.values()), found.ends, strict=False))
    rounds = _of({"start": begin, "text": f"round {number}"} for begin, number in begins.items())
    ends = _of({"start": end} for end in found.ends.values() if end < found.seconds)
    names = _of({"top": row + 0.5, "text": lane.name} for row, lane in enumerate(found.lanes))
    layers = [
        _bars(found, start, top),
        ends.mark_rule(style="label").encode(x=start),
        _of(cuts).mark_rule(style="reference").encode(x=start),
        names.mark_text(style="label", align="right").encode(x=alt.value(-10), y=top, text=text),
        rounds.mark_text(style="label", align="left", dx=2).encode(x=start, y=alt.value(-9), text=text),
        _of(cuts).mark_text(style="label", align="left", dx=6).encode(x=start, y=top, text=text),
    ]
    words = "; ".join(f"{lane.name} busy {lane.share:.0%}" for lane in found.lanes)
    # The names stand outside the axes, in a page's font, which may be a fifth wider than the one that is measured here.
    beside = 4 + 1.5 * max(len(lane.name) for lane in found.lanes)
    return alt.LayerChart(
        layer=layers, width=_WIDTH, height=height * _LANE_HEIGHT, autosize="pad",
        padding={"left": beside, "right": 4, "top": 4, "bottom": 4},
        description=f"{title}. {found.seconds:.1f} seconds: {words}.",
    )  # fmt: skip


def _of(rows: Iterable[Mapping[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _bars(found: Timeline, start: alt.X, top: alt.Y) -> alt.Chart:
    shown = [kind for kind in KINDS if any(lane.by_kind[kind] for lane in found.lanes)]
    legend = alt.Legend(orient="bottom", values=shown)
    bars = _of(bar for row, lane in enumerate(found.lanes) for bar in lane_bars(row, lane, found)).mark_rect()
    drawn: alt.Chart = bars.encode(
        x=start, x2=alt.X2("end"), y=top, y2=alt.Y2("bottom"),
        color=alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=legend),
        opacity=alt.Opacity("opacity:Q", scale=None),
    )  # fmt: skip
    return drawn


def lane_bars(row: int, lane: Lane, found: Timeline) -> Iterator[dict[str, Any]]:
    """Yields the bars of a lane: ``start`` and ``end`` in seconds, ``top`` and ``bottom`` in lanes from above."""
    tracks = _tracks(lane.spans, found.seconds / 500)
    height = _LANE / len(tracks)
    for track, spans in enumerate(tracks):
        top = row + (1 - _LANE) / 2 + track * height
        for (kind, own), bars in _merged(spans, found).items():
            for start, end in bars:
                yield {
                    "start": start, "end": end, "top": top, "bottom": top + height, "kind": kind,
                    "opacity": 1 if own else 0.4,
                }  # fmt: skip


def _tracks(spans: Sequence[Span], near: float) -> list[list[Span]]:
    """Puts pieces that overlap by more than ``near`` seconds below each other; with too many, some overlap."""
    tracks: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.start):
        free = next((track for track in tracks if track[-1].end <= span.start + near), None)
        if free is not None:
            free.append(span)
        elif len(tracks) < _MOST_TRACKS:
            tracks.append([span])
        else:
            min(tracks, key=lambda track: track[-1].end).append(span)
    return tracks


def _merged(spans: Sequence[Span], found: Timeline) -> dict[tuple[Kind, bool], list[tuple[float, float]]]:
    """Returns start and end of a track's bars, by kind and by whether they belong to the round in which they ran.

    If a track has very many pieces, those that would touch in the chart become one.
    """
    bars: dict[tuple[Kind, bool], list[tuple[float, float]]] = {}
    near = found.seconds / _MOST_BARS if len(spans) > _MOST_BARS else -1.0
    for span in spans:
        drawn = bars.setdefault((span.kind, not found.is_ahead(span)), [])
        if drawn and span.start - drawn[-1][1] < near:
            drawn[-1] = drawn[-1][0], max(drawn[-1][1], span.end)
        else:
            drawn.append((span.start, span.end))
    return bars
