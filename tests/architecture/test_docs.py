"""What the documentation promises of itself: links that resolve, files that exist, and a README that people finish."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
AWAITED: frozenset[str] = frozenset()
"""Pages that links may lead to before they are there."""

README_LINES, README_WORDS = 150, 1100
FOLDERS = ("flows", "pipeline", "storage", "deploy", "docs", "tests")

_FENCE = re.compile(r"^```.*?^```\n?", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page)


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page in addresses."""
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(page)))
    return {heading.replace(" ", "-") for heading in headings}


def broken_links(page: Path, root: Path = ROOT) -> Iterator[str]:
    """The relative links of a page that lead to no file under the root, or to no heading of it."""
    for link in _LINK.findall(_CODE.sub("", prose(page.read_text()))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = target.is_relative_to(root)
        if inside and str(target.relative_to(root)) in AWAITED:
            continue
        if not inside or not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


def missing_paths(page: Path) -> list[str]:
    """What a page names between backticks as a path of the repository, and is none; a pattern has to match a file."""
    named = [code for code in _CODE.findall(prose(page.read_text())) if _PATH.fullmatch(code)]
    return [path for path in named if not any(ROOT.glob(path.rstrip("/")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []
    assert missing_paths(page) == []


def test_the_readme_is_finished_in_five_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert len(text.split()) <= README_WORDS


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = set(_LINK.findall(index.read_text()))
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page != index and page.name not in listed] == []


def test_the_check_itself_finds_what_it_looks_for(tmp_path: Path) -> None:
    assert anchors("# What `a` is, and is not\n```\n# no heading\n```\n") == {"what-a-is-and-is-not"}
    wrong = tmp_path / "page.md"
    wrong.write_text(
        "# Here\n[a](#here) [b](#there) [c](none.md) [d](https://e.org) [e](page.md#here) [f](/usr)\n`[g](h)`\n"
    )
    assert list(broken_links(wrong, tmp_path)) == ["#there", "none.md", "/usr"]
    wrong.write_text("`flows/round/round.py` `flows/nothing.py` `docs/*.md` `pipeline/*.txt` `a/b.py`\n")
    assert missing_paths(wrong) == ["flows/nothing.py", "pipeline/*.txt"]
