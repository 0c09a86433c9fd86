"""Additions of two numbers of two digits, with the homework of a pupil who is not good at them yet.

Answers show their working, units before tens: without it a small model does not learn to carry. The warm start learns
from the pupil's answers, the judge knows the right sums: what lies between the two is what alignment can gain.
"""

import random
from functools import cache
from typing import ClassVar

from pipeline.data.corpora.base import CorpusPrompt, Split, draw, generator, split_of

SMALLEST, LARGEST = 10, 99
FORGETS_CARRY = 0.6
SLIPS = 0.25


class Additions:
    """Problems such as ``27+58=``, answered as ``7+8=15, 2+5+1=8, 85``; the reference answer is the sum alone."""

    chat: ClassVar[bool] = False
    has_reference_answers: ClassVar[bool] = True

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """Draws distinct problems of one split, with their sums: see ``Corpus.prompts``."""
        return [CorpusPrompt(text, str(_sum(text))) for text in draw(_problems(split), split, count, seed)]

    def texts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Draws problems with the pupil's answers, many of them wrong: see ``pupil``."""
        rng = generator("additions", seed)
        problems = [rng.choice(_problems("warm_start")) for _ in range(count)]
        return [(problem, pupil(*_terms(problem), rng)) for problem in problems]


def pupil(left: int, right: int, rng: random.Random) -> str:
    """Writes the pupil's working and answer to ``left + right``.

    Six times in ten the pupil forgets to carry from the units to the tens (27+58: 2+5+0=7, 75); one time in four, the
    sum of the tens comes out one too large or one too small.
    """
    units = left % 10 + right % 10
    carry = 0 if rng.random() < FORGETS_CARRY else units // 10
    slip = rng.choice((-1, 1)) if rng.random() < SLIPS else 0
    tens = left // 10 + right // 10 + carry + slip
    working = f"{left % 10}+{right % 10}={units}, {left // 10}+{right // 10}+{carry}={tens}"
    return f"{working}, {tens}{units % 10}"


@cache
def _problems(split: Split) -> tuple[str, ...]:
    numbers = range(SMALLEST, LARGEST + 1)
    texts = (f"{left}+{right}=" for left in numbers for right in numbers)
    return tuple(text for text in texts if split_of(_unordered(text)) == split)


def _unordered(problem: str) -> str:
    """Gives the same for ``27+58=`` and ``58+27=``: who has seen one has seen the other."""
    smaller, larger = sorted(_terms(problem))
    return f"{smaller}+{larger}="


def _terms(problem: str) -> tuple[int, int]:
    left, right = problem.removesuffix("=").split("+")
    return int(left), int(right)


def _sum(problem: str) -> int:
    return sum(_terms(problem))
