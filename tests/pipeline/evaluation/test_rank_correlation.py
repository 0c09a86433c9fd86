"""Rank correlations within prompts, by hand, and against an independent computation."""

import random
from itertools import combinations

import pytest

from pipeline.evaluation.rank_correlation import Kendall, Spearman


def test_kendall_by_hand() -> None:
    """Scores 1, 2, 3, 4 against 1, 3, 2, 4: of 6 pairs one is turned, so (5 - 1) / 6."""
    tau = Kendall()
    tau.add([1, 2, 3, 4], [1, 3, 2, 4])
    assert tau.value == pytest.approx(2 / 3, abs=1e-12)


def test_kendall_with_ties_by_hand() -> None:
    """1, 1, 2 against 1, 2, 3: 3 pairs, 2 of one order, 1 tie in the one: 2 / sqrt((3 - 1) * (3 - 0)) = 2 / sqrt 6.

    A second prompt, 1, 2 against 2, 1, adds a pair of opposite order: (2 - 1) / sqrt((4 - 1) * (4 - 0)) = 1 / sqrt 12.
    """
    tau = Kendall()
    tau.add([1, 1, 2], [1, 2, 3])
    assert tau.value == pytest.approx(2 / 6**0.5, abs=1e-12)
    tau.add([1, 2], [2, 1])
    assert tau.value == pytest.approx(1 / 12**0.5, abs=1e-12)


def test_spearman_by_hand() -> None:
    """Ranks 1 to 4 with two neighbours exchanged: 1 - 6 * (1 + 1) / (4 * 15) = 0.8.

    With ties, 5, 5, 9 have the ranks 1.5, 1.5, 3 and 1, 2, 3 theirs: deviations -0.5, -0.5, 1 and -1, 0, 1, so
    1.5 / sqrt(1.5 * 2).
    """
    rho = Spearman()
    rho.add([1, 2, 3, 4], [1, 3, 2, 4])
    assert rho.value == pytest.approx(0.8, abs=1e-12)
    tied = Spearman()
    tied.add([5, 5, 9], [1, 2, 3])
    assert tied.value == pytest.approx(1.5 / 3**0.5, abs=1e-12)


def test_levels_of_prompts_count_for_nothing() -> None:
    """Both order each prompt alike, though the second prompt is far above the first by one and below by the other."""
    for correlation in (Spearman(), Kendall()):
        correlation.add([1, 2], [101, 102])
        correlation.add([51, 52], [1, 2])
        assert correlation.value == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("correlation", [Spearman, Kendall])
def test_nothing_is_said_of_ties_alone(correlation: type[Spearman | Kendall]) -> None:
    empty = correlation()
    assert empty.value is None
    empty.add([1, 1, 1], [1, 2, 3])
    empty.add([7], [9])
    assert empty.value is None


def test_kendall_is_that_of_counting_one_by_one() -> None:
    """Seed 3; numbers of few values, so that there are ties of all sorts."""
    draw, tau = random.Random(3), Kendall()
    signs = []
    for _ in range(20):
        one, other = ([draw.randrange(4) for _ in range(5)] for _ in range(2))
        tau.add(one, other)
        signs += [
            ((one[i] > one[j]) - (one[i] < one[j]), (other[i] > other[j]) - (other[i] < other[j]))
            for i, j in combinations(range(5), 2)
        ]
    left = sum(a != 0 for a, _ in signs), sum(b != 0 for _, b in signs)
    expected = sum(a * b for a, b in signs) / (left[0] * left[1]) ** 0.5
    assert tau.value == pytest.approx(expected, abs=1e-12)
