"""Additions of two numbers below 100, with the homework of a pupil who is not good at them yet.

The warm start learns from the pupil's answers, the judge knows the right ones: what lies between the two is
what alignment can gain.
"""

import random
from functools import cache

from pipeline.corpora.base import CorpusPrompt, Split, draw, generator, split_of

LARGEST = 99
FORGETS_CARRY = 0.5
SLIPS = 0.3


class Additions:
    """Problems such as ``27+58=``; the answer is the sum in decimal digits."""

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """Distinct problems of one split, with their sums: see ``Corpus.prompts``."""
        return [CorpusPrompt(text, str(_sum(text))) for text in draw(_problems(split), split, count, seed)]

    def texts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Problems with the pupil's answers, many of them wrong: see ``pupil``."""
        rng = generator("additions", seed)
        problems = [rng.choice(_problems("warm_start")) for _ in range(count)]
        return [(problem, pupil(*_terms(problem), rng)) for problem in problems]


def pupil(left: int, right: int, rng: random.Random) -> str:
    """The pupil's answer to ``left + right``.

    Half of the time the pupil forgets to carry from the units to the tens (27+58=75); three times in ten, a
    digit of the answer comes out one too large or one too small (27+58=86).
    """
    carry = (left % 10 + right % 10) // 10
    answer = left + right - (10 * carry if rng.random() < FORGETS_CARRY else 0)
    if rng.random() < SLIPS:
        step = rng.choice((1, 10)) if answer >= 10 else 1
        answer += step if rng.random() < 0.5 or answer < step else -step
    return str(answer)


@cache
def _problems(split: Split) -> tuple[str, ...]:
    numbers = range(LARGEST + 1)
    texts = (f"{left}+{right}=" for left in numbers for right in numbers)
    return tuple(text for text in texts if split_of(text) == split)


def _terms(problem: str) -> tuple[int, int]:
    left, right = problem.removesuffix("=").split("+")
    return int(left), int(right)


def _sum(problem: str) -> int:
    return sum(_terms(problem))
