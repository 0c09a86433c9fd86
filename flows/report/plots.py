"""Figures as SVG text: pure functions of numbers.

Figures of the report take their colours and their font from the page's CSS variables, so that they follow its light
and its dark mode; a picture that stands alone has the light colours and its letters drawn as paths. Matplotlib is used
through its objects alone: there is no current figure, and no window.
"""

import hashlib
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from flows.registry.round_summary import RoundSummary

INTERVAL = 1.96
"""Standard errors on each side that make a 95% interval of a normal estimate."""

# Colours that stand for a role until the figure is written; no other colour is drawn with.
INK, MUTED, _GRID, PAPER = "#100001", "#100002", "#100003", "#100004"
SERIES = ("#100011", "#100012", "#100013")
MOST_CURVES = len(SERIES)
_ROLES = (INK, MUTED, _GRID, PAPER, *SERIES)
PAGE = ("var(--ink)", "var(--muted)", "var(--line)", "var(--card)", "var(--s1)", "var(--s2)", "var(--s3)")
LIGHT = ("#1c1d22", "#63656e", "#e3e1db", "#ffffff", "#1f5fbf", "#b8480f", "#217a52")
"""Ink, muted ink, lines, paper and three series: the light colours of page and pictures."""

_MARKERS = ("o", "s", "^")
_MOST_MARKERS = 40
_BINS = 36
_LEAST_SPAN = 0.1
_EDGE = 0.005
"""Room for the line beyond 0% and 100%."""
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "ytick.major.pad": 6,
}


@dataclass(frozen=True)
class Series:
    """A curve: its points in ascending x, and where it is an estimate the standard error of each."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    errors: Sequence[float] | None = None


@dataclass(frozen=True)
class Scale:
    """What the axes of a figure mean.

    Attributes:
        unit: of the values, written above the axis.
        x: what runs along the bottom; after a comma, which of them.
        percent: values are shares, shown as percentages.
        reference: a value to compare with, drawn as a dashed line.
        boundaries: positions of thin vertical lines, such as the beginnings of rounds.
        bars: errors as bars rather than as a band.
    """

    unit: str = ""
    x: str = "round"
    percent: bool = False
    reference: float | None = None
    boundaries: Sequence[float] = ()
    bars: bool = False


def series_of(rounds: Sequence[RoundSummary], label: str, value: str, error: str | None = None) -> Series:
    """A figure of the rounds as a curve; rounds that have no such figure are left out."""
    there = [summary for summary in rounds if getattr(summary, value) is not None]
    errors = None if error is None else [float(getattr(summary, error)) for summary in there]
    return Series(label, [summary.round for summary in there], [getattr(summary, value) for summary in there], errors)


def curves(title: str, series: Sequence[Series], scale: Scale = Scale()) -> str:
    """Curves over rounds or steps; bands and bars are 95% intervals.

    Args:
        title: said to those who cannot see the figure, with where each curve begins and ends.
    """
    with new_figure(5.2, 2.9) as figure:
        axes = figure.add_subplot()
        _draw(axes, series, scale)
        text = svg_of(figure, PAGE, as_text=True)
    return described(text, f"{title}. {'; '.join(_in_words(curve, scale) for curve in series)}.")


def distributions(title: str, scores_by_round: Mapping[int, Sequence[float]], unit: str) -> str:
    """A histogram of scores for each round, one below the other on the same scale, the mean marked.

    The histograms have equal areas.
    """
    everything = np.concatenate([np.asarray(scores, float) for scores in scores_by_round.values()])
    low, high = everything.min(), everything.max()
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    shares = {number: np.histogram(scores, edges)[0] / len(scores) for number, scores in scores_by_round.items()}
    tallest = max(float(share.max()) for share in shares.values())
    with new_figure(5.2, 0.9 + 0.42 * len(shares)) as figure:
        axes = figure.add_subplot()
        for row, (number, share) in enumerate(shares.items()):
            heights = -row + 0.92 * share / tallest
            axes.stairs(heights, edges, baseline=-row, fill=True, color=SERIES[0], alpha=0.35)
            axes.stairs(heights, edges, baseline=-row, color=SERIES[0], linewidth=1)
            axes.plot([np.mean(scores_by_round[number])] * 2, [-row, -row + 0.92], color=SERIES[1], linewidth=1.6)
        axes.set_yticks([-row for row in range(len(shares))], [f"round {number}" for number in shares])
        axes.set_ylim(-len(shares) + 0.8, 1)
        axes.grid(axis="x")
        axes.set_xlabel(unit)
        text = svg_of(figure, PAGE, as_text=True)
    means = ", ".join(f"round {number}: {np.mean(scores):.3g}" for number, scores in scores_by_round.items())
    return described(text, f"{title}. Mean by round: {means}.")


def reliability(title: str, confidences: Sequence[float], accuracies: Sequence[float], pairs: Sequence[int]) -> str:
    """How often a judge is right against how sure it is, from 1/2 to 1; dots grow with the pairs that they stand for.

    On the diagonal it is as often right as it says.
    """
    with new_figure(4.2, 3.4) as figure:
        axes = figure.add_subplot()
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        sizes = 20 + 160 * np.asarray(pairs, float) / max(pairs)
        axes.plot(confidences, accuracies, color=SERIES[0], linewidth=1.2, alpha=0.6)
        axes.scatter(confidences, accuracies, s=sizes, color=SERIES[0], linewidths=0)
        axes.grid()
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(min(0.48, *(value - 0.02 for value in accuracies)), 1.02)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
        text = svg_of(figure, PAGE, as_text=True)
    points = zip(confidences, accuracies, pairs, strict=True)
    words = "; ".join(f"{count} pairs, {said:.0%} sure, {right:.0%} right" for said, right, count in points)
    return described(text, f"{title}. {words}.")


def summary_picture(rounds: Sequence[RoundSummary], title: str) -> str:
    """Reward, win rate against round 0 and KL to the initial policy, side by side, as an SVG that stands alone.

    On white paper, so that it reads in a README whatever the colours around it.
    """
    wins = series_of(rounds, "against round 0", "win_rate_initial")
    kl = series_of(rounds, "to the initial policy", "kl_initial", "kl_initial_se")
    panels = [
        ("held-out reward", series_of(rounds, "reward", "reward", "reward_se"), Scale()),
        ("wins against round 0", wins, Scale(percent=True, reference=0.5)),
        ("KL to round 0, nats per sequence", kl, Scale(bars=True)),
    ]
    shown = [panel for panel in panels if panel[1].xs]
    with new_figure(10, 3.1) as figure:
        figure.set_facecolor(PAPER)
        figure.set_layout_engine("constrained", w_pad=0.16, h_pad=0.14, wspace=0.03)
        figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.016, ha="left")
        for place, (name, series, scale) in enumerate(shown, 1):
            axes = figure.add_subplot(1, len(shown), place)
            _draw(axes, [replace(series, label="")], scale)
            axes.set_title(name, fontsize=9.5, loc="left", pad=9)
        text = svg_of(figure, LIGHT, as_text=False)
    words = "; ".join(f"{name}: {_in_words(series, scale)}" for name, series, scale in shown)
    return described(text, f"{title}. {words}.")


def _draw(axes: Axes, series: Sequence[Series], scale: Scale) -> None:
    if scale.reference is not None:
        axes.axhline(scale.reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for boundary in scale.boundaries:
        axes.axvline(boundary, color=_GRID, linewidth=0.8)
    for curve, colour, marker in zip(series, SERIES, _MARKERS, strict=False):
        _draw_curve(axes, curve, colour, marker, scale)
    axes.grid(axis="y")
    axes.margins(x=0.04, y=0.12)
    _widen(axes, scale)
    axes.set_xlabel(scale.x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if scale.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    named = [curve for curve in series if curve.label]
    if len(named) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, borderaxespad=0.2, columnspacing=1.4)
    if scale.unit:
        axes.set_ylabel(scale.unit)


def _draw_curve(axes: Axes, curve: Series, colour: str, marker: str, scale: Scale) -> None:
    on_rounds = scale.x == "round"
    style: dict[str, Any] = {"color": colour, "label": curve.label, "linewidth": 1.8 if on_rounds else 1.1}
    if on_rounds and len(curve.xs) <= _MOST_MARKERS:
        style |= {"marker": marker, "markersize": 4.5, "markeredgewidth": 0}
    if curve.errors is not None:
        spread = INTERVAL * np.nan_to_num(np.asarray(curve.errors, float))
        ys = np.asarray(curve.ys, float)
        if scale.bars or len(curve.xs) == 1:
            axes.errorbar(curve.xs, ys, yerr=spread, elinewidth=1.2, **style)
            return
        axes.fill_between(curve.xs, ys - spread, ys + spread, color=colour, alpha=0.16, linewidth=0)
    axes.plot(curve.xs, curve.ys, **style)


def _widen(axes: Axes, scale: Scale) -> None:
    """Widens the range of values, so that a change of next to nothing does not fill the height of the figure.

    A single round, which has no range of its own, gets one.
    """
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, (left + right - 1) / 2), max(right, (left + right + 1) / 2))
    low, high = axes.get_ylim()
    least = _LEAST_SPAN * (1 if scale.percent else max(abs(low), abs(high)))
    if (missing := least - (high - low)) > 0:
        low, high = low - missing / 2, high + missing / 2
    if scale.percent:
        low, high = (max(low, -_EDGE), max(high, least)) if low < 0 else (min(low, 1 - least), min(high, 1 + _EDGE))
    axes.set_ylim(low, high)


def _in_words(curve: Series, scale: Scale) -> str:
    def say(value: float) -> str:
        return f"{value:.1%}" if scale.percent else f"{value:.3g}"

    name = f"{curve.label} " if curve.label else ""
    x = scale.x.partition(",")[0]
    if len(curve.xs) == 1:
        return f"{name}{say(curve.ys[0])} in {x} {curve.xs[0]:g}"
    return f"{name}from {say(curve.ys[0])} in {x} {curve.xs[0]:g} to {say(curve.ys[-1])} in {curve.xs[-1]:g}"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of the report's style, of this size in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def svg_of(figure: Figure, colours: Sequence[str], *, as_text: bool) -> str:
    """The figure with these colours for the roles, such as `PAGE`; its letters as text, or drawn as paths."""
    written = io.StringIO()
    # A fixed salt makes the ids, and so the bytes, the same each time.
    with mpl.rc_context({"svg.fonttype": "none" if as_text else "path", "svg.hashsalt": "rondo"}):
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    for role, colour in zip(_ROLES, colours, strict=True):
        text = text.replace(role, colour)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", text) if as_text else text


def described(text: str, description: str) -> str:
    """The SVG with a description for screen readers, and ids that no other figure of the page has."""
    own = f"f{hashlib.sha256((description + text).encode()).hexdigest()[:8]}-"
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
