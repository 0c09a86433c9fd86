"""Words and sentences of a text, as rules that count them see them."""

import unicodedata

import regex

WORDS_VERSION = 2
"""Counts changes of what is a word, or a sentence."""

# Unlike those of ``re``, the words of ``regex`` hold combining marks, as the vowels of Hindi are.
_WORD = regex.compile(r"[^\W_]+(?:(?:['-]|(?<=\d)[.,](?=\d))[^\W_]+)*")
# A run of marks is tried once, from its first one, and as a whole: else a long one takes the square of its length.
_SENTENCE_END = regex.compile(r"(?<![.!?…؟])[.!?…؟]++[\"'”’)\]*_»]*+(?=\s|$)|[。！？।]+|[\n\r\x85\u2028\u2029]+")
_LETTER = regex.compile(r"\p{L}")
# To bring accents into their order takes the square of how many stand on one letter. So after 30 of them comes U+034F,
# which separates them, as in the stream-safe format of Unicode (UAX #15); no language writes as many.
_MANY_ACCENTS = regex.compile(r"\P{ccc=0}{30}")
_ONE_FORM = str.maketrans({"’": "'", "‐": "-", "‑": "-"})


def in_one_form(text: str) -> str:
    """Writes a text in small letters, and accents, apostrophes and hyphens in one of the ways that look alike."""
    separated = _MANY_ACCENTS.sub("\\g<0>\u034f", text.casefold())
    return unicodedata.normalize("NFC", separated).translate(_ONE_FORM)


def words(text: str) -> list[str]:
    """Lists the words of a text in one form; ``don't``, ``well-known`` and ``3.50`` are one word each.

    A language that writes no blanks between words, such as Chinese, has one from mark to mark.
    """
    return list(_WORD.findall(in_one_form(text)))


def sentences(text: str) -> int:
    """Counts sentences: what ends with a full stop, a mark of its kind, or a line, and has a letter in it.

    An abbreviation with a full stop, such as "Mr. Smith", counts as an end.
    """
    return sum(_LETTER.search(part) is not None for part in _SENTENCE_END.split(text))
