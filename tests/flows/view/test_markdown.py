"""Markdown of a model: what it may look like, and what it can never do."""

import time

import pytest

from flows.view.markdown import markdown
from support.view_pages import elements


def test_form_is_shown_and_headings_are_none_of_the_page() -> None:
    shown = markdown("# Title\n\n**bold** and `code`\n\n- one\n- two\n\n|a|b|\n|:-|-:|\n|1|2|\n")
    assert '<p class="heading">Title</p>' in shown
    assert "<strong>bold</strong> and <code>code</code>" in shown
    assert "<li>one</li>" in shown
    assert "<td>2</td>" in shown  # without a style for its side, which the page's policy would block


@pytest.mark.parametrize(
    "text",
    [
        "[a](http://b.c)", "![a](http://b.c/d.png)", "<http://b.c>", "[a]\n\n[a]: http://b.c", "http://b.c",
        "![a][b.c]", "<a href=http://b.c>", "<script src=//b.c></script>", "<!-- b.c -->", "[a](javascript:b)",
        "&lt;b&gt; b.c",
        "```js\" onload=\"x\nb.c\n```", "<svg/onload=b.c>", "\x1b]8;;http://b.c\x07a", "![](data:b.c)", "**<b.c**",
    ],
)  # fmt: skip
def test_nothing_leads_away_or_runs(text: str) -> None:
    shown = markdown(text)
    tags, attributes = elements(shown)
    assert tags <= {"p", "strong", "pre", "code"}
    assert attributes <= {"class"}
    assert "b.c" in shown or "javascript:b" in shown  # what was written stays there to be read
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("|" * 2001 + "\n" + "|-" * 2000 + "|\n" + "x\n" * 5000, False),  # 10,000,000 cells without the bound
        ("|" * 50 + "\n" + "|-" * 49 + "|\n" + "x\n" * 6000, False),
        ("|a" * 49 + "|\n" + "|-" * 49 + "|\n" + "x\n" * 90, True),
    ],
)
def test_a_table_cannot_make_few_letters_many(text: str, tables: bool) -> None:
    began = time.process_time()
    shown = markdown(text[:20_000])
    assert time.process_time() - began < 3
    assert len(shown) < 200_000
    assert ("<table>" in shown) == tables


@pytest.mark.parametrize("part", ["*a ", "[", "`", "> ", "- ", "_a_*", "<", "|a", "a\n", "\\", "&", "![", "a\n=\n"])
def test_no_text_takes_long(part: str) -> None:
    """Of 20,000 letters, as many as a page shows, it takes a tenth of this; what takes squared time takes minutes."""
    began = time.process_time()
    markdown((part * 20_000)[:20_000])
    assert time.process_time() - began < 3
