"""What a page of ``rondo view`` says, read from its HTML."""

import html
import re
from html.parser import HTMLParser

from starlette.testclient import TestClient

from flows.view.app import make_app
from flows.view.security import Guard
from flows.view.site import Site

_BLOCK_END = re.compile(r"</(?:d[dt]|li|p|t[dhr]|h\d|div|caption|pre|summary)>")
_TAG = re.compile(r"<[^>]*>")
_SPACE = re.compile(r"\s+")


def visitor(site: Site) -> TestClient:
    """A visitor on this machine."""
    return TestClient(make_app(site, Guard("127.0.0.1")), base_url="http://127.0.0.1")


def words(page: str) -> str:
    """The text of a piece of HTML, with one space for all white space."""
    return _SPACE.sub(" ", html.unescape(_TAG.sub("", _BLOCK_END.sub(" ", page)))).strip()


def table(page: str, label: str) -> list[list[str]]:
    """The cells of the rows of the table in the region with this label."""
    start = page.index(f'aria-label="{label}"')
    body = page[page.index("<tbody>", start) : page.index("</tbody>", start)]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    return [[words(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def statements(page: str) -> list[str]:
    """What stands in the blocks that say the same in SQL and in the terminal."""
    blocks = re.findall(r'<details class="elsewhere">(.*?)</details>', page, re.DOTALL)
    return [html.unescape(code) for block in blocks for code in re.findall(r"<code>(.*?)</code>", block, re.DOTALL)]


def links(page: str) -> list[str]:
    """The addresses that a page leads to."""
    return [html.unescape(target) for target in re.findall(r'<a [^>]*href="([^"]*)"', page)]


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def elements(page: str) -> tuple[set[str], set[str]]:
    """The names of the tags of a page, and those of their attributes."""
    found = _Elements()
    found.feed(page)
    return found.tags, found.attributes
