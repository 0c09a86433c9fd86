"""Markdown of a model as HTML that can neither run anything nor lead away from the page."""

from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from flows.host.text import visible

_LEADS_AWAY = ("link", "image", "autolink", "reference")
"""The rules that make links and pictures: without them, these stay the text that they were written as."""


_MOST_COLUMNS = 50
_MOST_CELLS = 5_000
"""Each row of a table is filled up with cells to the width of its head, so that few letters become many."""


def markdown(text: str) -> Markup:
    """Renders a text of a model: its HTML, links and pictures stay text, and control characters are made visible.

    A text in which a line has more than 50 ``|``, or whose tables could have more than 5,000 cells, has no tables.
    """
    html = _renderer(_tables_stay_small(text)).render(visible(text.expandtabs(4)))
    return Markup(html)  # noqa: S704  all of it is escaped, see below


def _tables_stay_small(text: str) -> bool:
    lines = text.splitlines()
    columns = max((line.count("|") for line in lines), default=0)
    return columns <= _MOST_COLUMNS and columns * len(lines) <= _MOST_CELLS


@cache
def _renderer(tables: bool) -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "linkify": False}).disable([*_LEADS_AWAY])
    if tables:
        made.enable("table")
    # A heading of the text is none of the page, and the page's policy forbids styles within attributes.
    for rule in ("heading_open", "heading_close", "th_open", "td_open"):
        made.add_render_rule(rule, _plain)
    return made


def _plain(_renderer: Any, tokens: Any, place: int, *_: Any) -> str:
    token = tokens[place]
    if token.type.startswith("heading"):
        return '<p class="heading">' if token.nesting == 1 else "</p>\n"
    return f"<{token.tag}>"
