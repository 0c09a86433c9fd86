"""From a page to HTML: text is escaped, what was not measured is said to be so, and charts are drawn as SVG."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from altair.typing import ChartType
from jinja2 import Environment, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from flows.host.text import visible
from flows.report.rendering import (
    NOT_MEASURED,
    PAGE,
    colours,
    definition,
    environment,
    page_styles,
    shown,
)
from flows.view.addresses import Addresses
from flows.view.pictures import MODES, PICTURES, svg_from

_HERE = Path(__file__).parent
LINKS = "links"
"""The style of marks that are links, of which each row says where it leads."""
FILE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'none'; base-uri 'none'"
)
"""The content security policy of an exported page; those of the server are in its headers."""
STATIC = ("colours.css", "page.css", "page.js", "charts.js", "icon.svg")
"""What each page loads."""
_STATIC = {"page.js": "text/javascript", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True)
class Page:
    """A page before it is rendered.

    Attributes:
        template: the template's file name.
        title: what the browser's tab says.
        values: what the template shows.
        run: the run that it is of, for the links between its pages.
        tab: which of these links it belongs to.
        state: the run's, as ``OpenRun.state`` gives it, if the browser is to ask for the page again when that changes.
    """

    template: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None
    tab: str = ""
    state: str = ""


def render(
    page: Page, address: Addresses, *, form_token: str = "", exported: str = "", damages: Sequence[str] = ()
) -> str:
    """Renders a page.

    Args:
        address: gives the links.
        form_token: what its forms carry.
        exported: what a page says of its export, if it is to be a file without a server behind it.
        damages: what is wrong with files of its run that are left out of what it shows.
    """
    template = _environment().get_template(page.template)
    return template.render(
        page=page, address=address, form_token=form_token, exported=exported, policy=FILE_POLICY, damages=damages,
        **page.values,
    )  # fmt: skip


@cache
def _environment() -> Environment:
    made = environment(_HERE / "templates")
    made.filters |= {
        "share": share,
        "marked": marked,
        "drawn": drawn,
        "linked": linked,
    }
    made.filters["spark"] = sparkline
    return made


def share(value: float | None) -> str:
    """Writes a share as a percentage."""
    return NOT_MEASURED if value is None else f"{value:.1%}"


def marked(text: str, hits: re.Pattern[str] | None) -> Markup:
    """Escapes a text as `shown` does, with what a search has hit marked."""
    if hits is None:
        return shown(text)
    parts, end = [], 0
    for hit in hits.finditer(text):
        parts += [shown(text[end : hit.start()]), Markup("<mark>"), shown(hit[0]), Markup("</mark>")]
        end = hit.end()
    return Markup("").join([*parts, shown(text[end:])])


@pass_context
def drawn(context: Context, chart: ChartType, round_address: str | None = None) -> Markup:
    """Shows a chart as a picture, with its definition beside it, from which the page's script makes it interactive.

    The server draws the picture when the browser asks for it. A file has no server: there it is drawn into the page.

    Args:
        round_address: where a click on a point of a curve over rounds leads, but for the round's number.
    """
    spec = definition(chart)
    for layer in spec.get("layer", ()):
        if not isinstance(layer["mark"], dict) or layer["mark"]["type"] != "point":
            continue
        tips = [{"field": "x", "title": "round"}, {"field": "y", "title": "value", "format": ".4g"}]
        layer["encoding"].setdefault("tooltip", tips)
        if round_address:
            layer["transform"] = [{"calculate": f"{json.dumps(round_address)} + datum.x", "as": "href"}]
            layer["encoding"]["href"] = {"field": "href", "type": "nominal"}
    text = json.dumps(spec, sort_keys=True)
    if context["exported"]:
        return _with_definition(Markup(svg_from(text)), text)  # noqa: S704  Vega escapes the text in it
    key = PICTURES.keep(text)
    light, dark = (context["address"]("chart", key, f"{mode}.svg") for mode in MODES)
    size = "".join(
        f' {name}="{spec[name]:g}"' for name in ("width", "height") if isinstance(spec.get(name), int | float)
    )
    picture = Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="{}">'
        '<img src="{}" alt="{}" loading="lazy"{}></picture>'
    ).format(dark, light, visible(spec["description"]), Markup(size))  # noqa: S704  numbers alone
    return _with_definition(picture, text)


def linked(chart: ChartType, begin: str | None, end: str = "") -> Markup:
    """Draws a chart whose marks are links, to what their rows have as ``to`` between ``begin`` and ``end``.

    Args:
        begin: None if there is no such page, as in an export: then the marks are no links.
    """
    spec = definition(chart)
    for layer in spec["layer"]:
        if begin is not None and layer["mark"].get("style") == LINKS:
            target = f"{json.dumps(begin)} + datum.to + {json.dumps(end)}"
            layer["transform"] = [{"calculate": target, "as": "href"}]
            layer["encoding"]["href"] = {"field": "href", "type": "nominal"}
    text = json.dumps(spec, sort_keys=True)
    return _with_definition(Markup(svg_from(text)), text)  # noqa: S704  Vega escapes the text in it


def _with_definition(picture: Markup, spec: str) -> Markup:
    quoted = Markup(spec.replace("<", "\\u003c"))  # noqa: S704  JSON, which no tag can end
    return Markup('{}<script type="application/json" class="definition">{}</script>').format(picture, quoted)


def sparkline(values: Sequence[float | None]) -> Markup:
    """Draws a small curve of a metric over the rounds, without axes; what was not measured is a gap."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup("")
    low, high = min(known), max(known)
    step, scale = 96 / max(len(values) - 1, 1), 18 / ((high - low) or 1)
    points = " ".join(f"{2 + n * step:.1f},{21 - (v - low) * scale:.1f}" for n, v in enumerate(values) if v is not None)
    words = f"from {known[0]:.3g} to {known[-1]:.3g}"
    return Markup(  # noqa: S704  numbers alone
        f'<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{words}"><polyline points="{points}"/></svg>'
    )


def static_file(name: str) -> tuple[bytes, str] | None:
    """Returns a file that all pages share, and its type: our styles and script, and the charts' library."""
    if name == "colours.css":
        return colours().encode(), "text/css"
    if name == "page.css":
        return page_styles().encode(), "text/css"
    if name == "charts.js":
        return _charts().encode(), "text/javascript"
    return ((_HERE / "static" / name).read_bytes(), _STATIC[name]) if name in _STATIC else None


@cache
def _charts() -> str:
    """Returns the library that makes charts interactive, as vl-convert brings it along, with our theme.

    It is a module without imports and exports. Within a function it is a plain script, which a browser also loads for a
    page that is a file.
    """
    library: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its types ask for what has a default
    return f"(() => {{ 'use strict'; {library}\n}})();\nwindow.rondoTheme = {json.dumps(PAGE)};\n"
