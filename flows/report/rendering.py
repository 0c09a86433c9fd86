"""From a chart to SVG text, and from a template to a page; neither needs a network, a browser or a script.

A chart names no colour: a theme gives them. `PAGE` takes them from the page's CSS variables, so that a chart follows
light and dark mode; `PAPER` has the light ones, for a picture that stands alone.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert
from altair.typing import ChartType
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from flows.host.text import visible

Theme = Mapping[str, Any]

_HERE = Path(__file__).parent
NOT_MEASURED = "not measured"

_NOT_IN_SVG = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""What XML 1.0 leaves out: https://www.w3.org/TR/xml/#charsets."""

_COLOURS = ("ink", "muted", "line", "card", "s1", "s2", "s3")
"""Text, quieter text, grid, the ground that a chart lies on, and three curves."""
LIGHT = dict(zip(_COLOURS, ("#1c1d22", "#63656e", "#e3e1db", "#ffffff", "#1f5fbf", "#b8480f", "#217a52"), strict=True))
DARK = dict(zip(_COLOURS, ("#e8e8eb", "#a0a3ad", "#33363d", "#1b1d21", "#7fb1ff", "#ff9f66", "#6fd1a3"), strict=True))
MORE = ("#7b3fa8", "#b3256e", "#7a6300", "#0f7285")
"""Further curves, of a picture that stands alone."""


def _theme(colour: Mapping[str, str], background: str, padding: int) -> Theme:
    """Makes a Vega-Lite configuration: https://vega.github.io/vega-lite/docs/config.html."""
    return {
        "aria": False,  # the description says it in one sentence; without it, every point would be read aloud
        "autosize": {"type": "fit", "contains": "padding"},
        "background": background,
        "font": "sans-serif",
        "padding": padding,
        "range": {"category": [colour["s1"], colour["s2"], colour["s3"]]},
        "view": {"stroke": None},
        "axis": {
            "domainColor": colour["line"], "gridColor": colour["line"], "tickColor": colour["line"],
            "labelColor": colour["muted"], "labelFontSize": 12, "labelPadding": 5,
            "titleColor": colour["muted"], "titleFontSize": 12, "titleFontWeight": "normal",
        },
        "axisX": {"grid": False, "labelFlush": False, "tickSize": 4},
        "axisY": {"domain": False, "ticks": False},
        "header": {"labelColor": colour["muted"], "labelFontSize": 12},
        "legend": {
            "columnPadding": 28,  # a page's own font may be wider than the one that is measured here
            "labelColor": colour["ink"], "labelFontSize": 12, "labelLimit": 400, "orient": "top", "symbolOpacity": 1,
            "symbolSize": 60, "title": None,
        },
        "line": {"strokeWidth": 2},
        "mark": {"color": colour["s1"]},
        "point": {"filled": True, "opacity": 1, "size": 36},
        "title": {"anchor": "start", "color": colour["ink"], "fontSize": 12, "fontWeight": "normal", "offset": 12},
        "style": {
            "boundary": {"color": colour["line"], "strokeWidth": 1},
            "interval": {"opacity": 0.16},
            "label": {"color": colour["muted"], "fontSize": 12},
            "mean": {"color": colour["s2"], "strokeWidth": 2},
            "reference": {"color": colour["muted"], "strokeDash": [5, 4], "strokeWidth": 1.2},
        },
    }  # fmt: skip


PAGE = _theme({role: f"var(--{role})" for role in _COLOURS}, "transparent", padding=4)
PAPER = _theme(LIGHT, LIGHT["card"], padding=16)
MANY = {**PAPER, "range": {"category": [*PAPER["range"]["category"], *MORE]}}
"""`PAPER` for up to seven curves."""


_ASSUMED_BASE = 'href="https://vega.github.io/vega-datasets/'
"""What vl-convert puts before an address that names no host; ours are of the page that the chart is on."""


def to_svg(chart: ChartType, theme: Theme = PAGE) -> str:
    """Draws a chart: the same chart gives the same bytes."""
    return svg_of(definition(chart), theme)


def definition(chart: ChartType) -> dict[str, Any]:
    """Returns what Vega-Lite draws; the tests validate it, for that takes longer than all else here."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec


def svg_of(spec: Mapping[str, Any], theme: Theme = PAGE) -> str:
    """Draws a chart's definition. Its description is what a screen reader says.

    Characters that no SVG may have are shown as escapes: at one of them the library would end this process.
    """
    drawable: dict[str, Any] = _drawable(spec)
    drawn = vl_convert.vegalite_to_svg(drawable, config=dict(theme), allowed_base_urls=[])
    drawn = drawn.replace(_ASSUMED_BASE, 'href="')
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(drawable["description"])}"', 1)


def _drawable(part: Any) -> Any:
    if isinstance(part, str):
        return _NOT_IN_SVG.sub(lambda found: f"\\u{ord(found[0]):04x}", part)
    if isinstance(part, Mapping):
        return {_drawable(name): _drawable(value) for name, value in part.items()}
    return [_drawable(value) for value in part] if isinstance(part, list | tuple) else part


def number(value: float | None, form: str = ".3g") -> str:
    """Writes a number; None is not measured, and never 0."""
    return NOT_MEASURED if value is None else f"{value:{form}}"


def shown(text: str | None) -> Markup:
    """Escapes a text of a model or a user, with its control characters made visible."""
    return escape(visible(text)) if text else Markup("")


def colours() -> str:
    """Returns the colours that pages and charts share, as a style sheet, for light and dark mode."""

    def variables(chosen: Mapping[str, str]) -> str:
        return " ".join(f"--{role}: {colour};" for role, colour in chosen.items())

    return f":root {{ {variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}\n"


def page_styles() -> str:
    """Returns the style sheet of all pages, but for these colours."""
    return (_HERE / "static" / "page.css").read_text(encoding="utf-8")


def environment(*templates: Path) -> Environment:
    """Makes an environment of these directories of templates, and of those that all pages share. Text is escaped."""
    made = Environment(
        loader=FileSystemLoader([*templates, _HERE / "templates"]), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"number": number, "shown": shown}
    return made


def to_page(template: str, title: str, **values: Any) -> str:
    """Fills in a template of a page that is one file: its charts are pictures, and its links lead nowhere else."""
    made = environment()
    made.filters["drawn"] = _drawn
    page = {"title": title, "run": None}
    styles = Markup(colours() + page_styles())  # noqa: S704  our own
    return made.get_template(template).render(page=page, styles=styles, address=_no_page, **values)


def _no_page(*_parts: object, **_query: object) -> None:
    """Gives the address of any other page: none."""


def _drawn(chart: ChartType, _round_address: str | None = None) -> Markup:
    return Markup(to_svg(chart))  # noqa: S704  Vega escapes the text in it, and `to_svg` the description
