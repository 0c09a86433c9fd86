"""How alike two numbers of each completion order the completions of a prompt, over many prompts.

Prompts differ in level, which no preference is made of: so only completions of the same prompt are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from pipeline.judges.ensemble import relative_ranks


@dataclass
class Spearman:
    """Spearman's correlation within prompts: Pearson's of the ranks that completions have among those of their prompt.

    Ties have their mean rank. A prompt in which all of the one or all of the other tie says nothing, and is left out.
    """

    _products: dict[str, float] = field(default_factory=lambda: {"one": 0.0, "other": 0.0, "both": 0.0})

    def add(self, one: Sequence[float], other: Sequence[float]) -> None:
        """Adds a prompt: two numbers of each of its completions."""
        if len(set(one)) < 2 or len(set(other)) < 2:
            return
        for rank, other_rank in zip(relative_ranks(one), relative_ranks(other), strict=True):
            if rank is not None and other_rank is not None:
                a, b = rank - 0.5, other_rank - 0.5
                for name, product in (("one", a * a), ("other", b * b), ("both", a * b)):
                    self._products[name] += product

    @property
    def value(self) -> float | None:
        """Returns it, from -1 to 1; None if nothing was said."""
        norm = math.sqrt(self._products["one"] * self._products["other"])
        return self._products["both"] / norm if norm else None


@dataclass
class Kendall:
    """Kendall's tau-b within prompts (Kendall 1945): ``(C - D) / sqrt((P - T) (P - U))``.

    Of the P pairs of completions of a prompt, over all prompts, C have the same order by both numbers and D the
    opposite one; T tie by the one number and U by the other.
    """

    _pairs: int = 0
    _difference: int = 0
    _ties: tuple[int, int] = (0, 0)

    def add(self, one: Sequence[float], other: Sequence[float]) -> None:
        """Adds a prompt: two numbers of each of its completions."""
        for (a, x), (b, y) in combinations(zip(one, other, strict=True), 2):
            first, second = _sign(a, b), _sign(x, y)
            self._pairs += 1
            self._difference += first * second
            self._ties = self._ties[0] + (not first), self._ties[1] + (not second)

    @property
    def value(self) -> float | None:
        """Returns it, from -1 to 1; None if all pairs tie by one of the numbers."""
        norm = math.sqrt((self._pairs - self._ties[0]) * (self._pairs - self._ties[1]))
        return self._difference / norm if norm else None


def _sign(a: float, b: float) -> int:
    return (a > b) - (a < b)
