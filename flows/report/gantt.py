"""The timeline of rounds as a figure: a lane for each part on each of its devices, a bar for each piece of work."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from flows.report.plots import INK, MUTED, PAGE, PAPER, SERIES, described, new_figure, svg_of
from flows.report.timeline import KINDS, Kind, Span, Timeline, duration

_LANE = 0.72
"""Height of a lane's bars, of the 1 that it has."""
_MOST_TRACKS = 4
_MOST_BARS = 300
"""Of a lane; of more, those that would touch are drawn as one, so that the page stays light."""


def gantt(title: str, found: Timeline) -> str:
    """What ran when: a row for each lane, a bar for each piece, coloured by what it worked for.

    Pieces of another round than the one in which they ran are pale. What was cut out is a dashed line that says how
    long it was.
    """
    colours = dict(zip(KINDS, SERIES, strict=True))
    rows = len(found.lanes)
    with new_figure(10.4, 1.15 + 0.44 * rows + (0.2 if found.cuts else 0)) as figure:
        axes = figure.add_subplot()
        for row, lane in enumerate(found.lanes):
            tracks = _tracks(lane.spans, found.seconds / 500)
            height = _LANE / len(tracks)
            for track, spans in enumerate(tracks):
                middle = -row + _LANE / 2 - (track + 0.5) * height
                for (kind, own), bars in _bars(spans, found).items():
                    axes.barh(
                        [middle] * len(bars), [length for _, length in bars], height, [begin for begin, _ in bars],
                        color=colours[kind], edgecolor=PAPER, linewidth=0.5, alpha=1 if own else 0.4,
                    )  # fmt: skip
        _mark_times(axes, found, rows)
        axes.set_yticks([-row for row in range(rows)], [lane.name for lane in found.lanes])
        axes.set_ylim(-rows + (0.0 if found.cuts else 0.4), 0.6)  # with a line for what was cut out
        axes.set_xlim(0, found.seconds)
        axes.grid(axis="x")
        axes.set_xlabel("seconds")
        shown = [kind for kind in KINDS if any(lane.by_kind[kind] for lane in found.lanes)]
        handles = [Patch(facecolor=colours[kind], label=kind) for kind in shown]
        axes.legend(
            handles=handles, loc="lower right", bbox_to_anchor=(1.005, 1.0), ncols=len(shown), borderaxespad=0.2,
            handlelength=1.0, handleheight=1.0, columnspacing=1.4,
        )  # fmt: skip
        text = svg_of(figure, PAGE, as_text=True)
    words = "; ".join(f"{lane.name} busy {lane.share:.0%}" for lane in found.lanes)
    return described(text, f"{title}. {found.seconds:.1f} seconds: {words}.")


def _tracks(spans: Sequence[Span], near: float) -> list[list[Span]]:
    """Pieces that ran at once for more than ``near`` seconds, one below the other; of very many some overlap."""
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


def _bars(spans: Sequence[Span], found: Timeline) -> dict[tuple[Kind, bool], list[tuple[float, float]]]:
    """Begin and length of the bars of a lane, by kind and by whether they are of the round in which they ran.

    Of a lane with very many pieces, those that would touch in the figure are one.
    """
    bars: dict[tuple[Kind, bool], list[tuple[float, float]]] = {}
    near = found.seconds / _MOST_BARS if len(spans) > _MOST_BARS else -1.0
    for span in spans:
        drawn = bars.setdefault((span.kind, not found.is_ahead(span)), [])
        if drawn and span.start - sum(drawn[-1]) < near:
            drawn[-1] = drawn[-1][0], max(sum(drawn[-1]), span.end) - drawn[-1][0]
        else:
            drawn.append((span.start, span.end - span.start))
    return bars


def _mark_times(axes: Axes, found: Timeline, rows: int) -> None:
    """The rounds' ends, and what was cut out."""
    begin = 0.0
    for number, end in found.ends.items():
        axes.text(begin, 0.72, f" round {number}", color=MUTED, fontsize=9, va="bottom", clip_on=False)
        if end < found.seconds:
            axes.axvline(end, color=INK, linewidth=0.9)
        begin = end
    for cut in found.cuts:
        axes.axvline(cut.start, color=INK, linewidth=1.4, linestyle=(0, (2, 2)))
        axes.text(
            cut.start, -rows + 0.05, f" cut: {duration(cut.seconds)} in which nothing ran", color=INK, fontsize=8.5,
            va="bottom",
        )  # fmt: skip
