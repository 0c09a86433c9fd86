"""Words and sentences of a text, as rules that count them see them."""

import re

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)]*(?=\s|$)|\n+")
_LETTER = re.compile(r"[^\W\d_]")


def words(text: str) -> list[str]:
    """Lists the words of a text in small letters; ``don't`` and ``well-known`` are one word each."""
    return [word.casefold() for word in _WORD.findall(text)]


def sentences(text: str) -> int:
    """Counts sentences: what ends with a full stop, a mark of its kind, or a line, and has a letter in it.

    An abbreviation with a full stop, such as "Mr. Smith", counts as an end.
    """
    return sum(_LETTER.search(part) is not None for part in _SENTENCE_END.split(text))
