"""Markdown of a model as HTML that can neither run anything nor lead away from the page."""

from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from flows.host.text import visible

_LEADS_AWAY = ("link", "image", "autolink", "reference")
"""The rules that make links and pictures: without them, these stay the text that they were written as."""


def markdown(text: str) -> Markup:
    """Renders a text of a model: its HTML, links and pictures stay text, and control characters are made visible."""
    return Markup(_renderer().render(visible(text.expandtabs(4))))  # noqa: S704  all of it is escaped, see below


@cache
def _renderer() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table").disable([*_LEADS_AWAY])
    # A heading of the text is none of the page, and the page's policy forbids styles within attributes.
    for rule in ("heading_open", "heading_close", "th_open", "td_open"):
        made.add_render_rule(rule, _plain)
    return made


def _plain(_renderer: Any, tokens: Any, place: int, *_: Any) -> str:
    token = tokens[place]
    if token.type.startswith("heading"):
        return '<p class="heading">' if token.nesting == 1 else "</p>\n"
    return f"<{token.tag}>"
