"""Long texts on the page of a prompt: how much of each is shown, and in which form."""

from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from flows.report.rendering import shown
from flows.view.markdown import markdown as as_markdown

MARKDOWN_LETTERS = 100_000
"""Letters that a page renders as Markdown: these can become ten times as many, and cost a second of processor time."""


@dataclass
class Texts:
    """Renders long texts: no more than so many letters of each, and as Markdown if that is asked for.

    The one that is shown whole is no Markdown if it is longer, because rendering it could take minutes. What comes
    after ``MARKDOWN_LETTERS`` of the page is none either.
    """

    limit: int
    markdown: bool
    _rendered: int = field(default=0, init=False)

    def __call__(self, text: str | None, *, whole: bool = False, plain: bool = False) -> Any:
        """Returns a text as HTML, in which nothing of it is obeyed."""
        text = text or ""
        if plain or not self.markdown or (whole and self.is_cut(text)):
            return shown(text if whole else text[: self.limit])
        text = text[: self.limit]
        if self._rendered + len(text) > MARKDOWN_LETTERS:
            note = f"As text: a page renders {MARKDOWN_LETTERS:,} letters as Markdown."
            return Markup('<p class="muted">{}</p><div class="text">{}</div>').format(note, shown(text))
        self._rendered += len(text)
        return as_markdown(text)

    def is_cut(self, text: str | None) -> bool:
        """Says whether a text is longer than what is shown of it."""
        return len(text or "") > self.limit
