"""How sure comparisons and shuffles are of an order, by enumeration over grids and by simulation."""

import math
import random
from itertools import combinations
from statistics import NormalDist, fmean

import numpy as np
import pytest

from pipeline.judges.support.comparisons import (
    PRIOR_STD,
    mean_place,
    place_difference,
    places,
    shuffles,
    strength_orders,
    strengths,
)


def by_grid(count: int, wins: dict[tuple[int, int], float], a: int, b: int) -> float:
    """P(a is stronger than b) by a sum over a grid of the differences from b, which are normal and correlated."""
    others = [k for k in range(count) if k != b]
    points = np.arange(-12, 12.01, 0.25)
    grid = np.zeros((count, len(points) ** len(others)))
    grid[others] = np.stack(np.meshgrid(*[points] * len(others), indexing="ij")).reshape(len(others), -1)
    log = -((grid**2).sum(0) - grid.sum(0) ** 2 / count) / (2 * PRIOR_STD**2)
    for (i, j), number in wins.items():
        log -= number * np.logaddexp(0, grid[j] - grid[i])
    weight = np.exp(log - log.max())
    above = (grid[a] > 0) + 0.5 * (grid[a] == 0)
    return float((weight * above).sum() / weight.sum())


def test_one_win_of_two() -> None:
    """By hand: the difference has the prior N(0, 8), and one win the likelihood sigmoid."""
    wins = {(0, 1): 1.0}
    points = np.linspace(-40, 40, 200_001)
    density = np.exp(-(points**2) / 16) / (1 + np.exp(-points))
    exact = density[points > 0].sum() / density.sum()
    assert exact == pytest.approx(0.828, abs=1e-3)
    beats, spread = strength_orders(2, wins)
    assert beats[0, 1] == pytest.approx(exact, abs=1e-4)  # the grid's own error
    assert beats[1, 0] == pytest.approx(1 - exact, abs=1e-4)
    mean, std = strengths(2, wins)
    phi = NormalDist().cdf
    assert phi((mean[0] - mean[1]) / math.hypot(*std)) == pytest.approx(0.731, abs=1e-3)  # as if independent
    assert phi((mean[0] - mean[1]) / spread[0, 1]) == pytest.approx(0.782, abs=1e-3)  # with the covariance


def test_neighbours_of_four_and_of_three() -> None:
    four = dict.fromkeys(combinations(range(4), 2), 1.0)
    beats, spread = strength_orders(4, four)
    mean, _ = strengths(4, four)
    assert NormalDist().cdf((mean[0] - mean[1]) / spread[0, 1]) == pytest.approx(0.758, abs=1e-3)
    assert beats[0, 1] == pytest.approx(0.791, abs=3e-3)
    for a, b in ((0, 1), (1, 2), (0, 3)):
        # The trapezoid's error at 0 is the step squared by 12 times the density's slope, 3e-4; ours is 1e-3.
        assert beats[a, b] == pytest.approx(by_grid(4, four, a, b), abs=1e-3)
    wins = {(0, 1): 1.0, (1, 2): 0.5, (2, 1): 0.5}
    assert strength_orders(3, wins)[0][0, 2] == pytest.approx(by_grid(3, wins, 0, 2), abs=1e-3)


def test_many_candidates_take_the_normal_approximation() -> None:
    wins = dict.fromkeys(combinations(range(12), 2), 1.0)
    (mean, _), (beats, spread) = strengths(12, wins), strength_orders(12, wins)
    assert beats[3, 4] == pytest.approx(NormalDist().cdf((mean[3] - mean[4]) / spread[3, 4]))


def test_what_was_never_compared_is_open() -> None:
    beats, spread = strength_orders(3, {})
    assert beats == pytest.approx(np.full((3, 3), 0.5), abs=1e-6)
    assert spread[0, 1] == pytest.approx(math.sqrt(2) * PRIOR_STD)


def test_standard_errors_of_places_by_hand() -> None:
    # Two shuffles, places 1 and 1/3: mean 2/3, sum of squares 2/9; a drawn place of four has the variance 5/36.
    mean, error = mean_place([1.0, 1 / 3], 4)
    assert mean == pytest.approx(2 / 3)
    assert error == pytest.approx(math.sqrt((5 / 36 + 2 / 9) / 2 / 2))
    # Both shuffles agree on a difference of 1/3: nothing was seen to vary, and yet it is not certain.
    mean, error = place_difference([1.0, 2 / 3], [2 / 3, 1 / 3], 4)
    assert mean == pytest.approx(1 / 3)
    assert error == pytest.approx(math.sqrt(10 / 27 / 4))


def test_labels_of_two_shuffles_come_true_as_often_as_they_say() -> None:
    """A judge that sees each of four answers' worth with noise, anew in each shuffle."""
    rng, labels, right = random.Random(0), [], []
    for _ in range(1500):
        worth = [rng.gauss(0, 1) for _ in range(4)]
        seen = []
        for _ in shuffles(4, 2, rng):
            noisy = [value + rng.gauss(0, 0.45) for value in worth]
            seen.append(places(sorted(range(4), key=lambda k: -noisy[k]), 4))
        for a, b in combinations(range(4), 2):
            mean, error = place_difference([row[a] for row in seen], [row[b] for row in seen], 4)
            if mean:
                label = NormalDist().cdf(abs(mean) / error)
                labels.append(label)
                right.append((mean > 0) == (worth[a] > worth[b]))
    # 8,000 labels of 1,500 prompts: the share that is right scatters by 0.005. With the deviation of one shuffle the
    # mean label was 0.95, and 0.43 of the labels were 1.
    assert fmean(labels) == pytest.approx(fmean(right), abs=0.03)
    assert max(labels) < 0.9996  # the best and the worst of both shuffles
