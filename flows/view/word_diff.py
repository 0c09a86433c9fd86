"""What two texts differ in, word by word."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

Part = tuple[bool, str]
"""A piece of a text, and whether the other text lacks it."""

MOST_WORDS = 1000
"""Words at the beginning of each text that are compared, at most."""
_MOST_PAIRS = 15_000
"""Pairs of equal words in the two texts, at most: each costs about 10 microseconds, if a few words repeat for ever."""

_WORD = re.compile(r"\S+\s*|\s+")


@dataclass(frozen=True)
class WordDiff:
    """Two texts as pieces that they share, and pieces that only one of them has.

    Attributes:
        first, second: the pieces, which joined are the text.
        compared: how many words at the beginning were compared, if not all; what comes after them is marked in neither.
    """

    first: Sequence[Part]
    second: Sequence[Part]
    compared: int | None


def word_diff(first: str, second: str) -> WordDiff:
    """Compares two texts; a word counts as the same whatever white space comes after it."""
    words = [_WORD.findall(text) for text in (first, second)]
    bare = [[word.strip() for word in found[:MOST_WORDS]] for found in words]
    count = MOST_WORDS
    while _equal_pairs(bare[0][:count], bare[1][:count]) > _MOST_PAIRS:
        count //= 2
    parts: tuple[list[Part], list[Part]] = ([], [])
    matcher = SequenceMatcher(None, bare[0][:count], bare[1][:count], autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        for side, start, end in ((0, a, b), (1, c, d)):
            if start < end:
                parts[side].append((tag != "equal", "".join(words[side][start:end])))
    for side, found in enumerate(words):
        if rest := "".join(found[count:]):
            parts[side].append((False, rest))
    return WordDiff(*parts, None if max(map(len, words)) <= count else count)


def _equal_pairs(first: Sequence[str], second: Sequence[str]) -> int:
    counts = Counter(second)
    return sum(counts[word] for word in first)
