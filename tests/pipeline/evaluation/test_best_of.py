"""The best of n by hand, against all ways to draw, and against its closed form."""

import math
from itertools import combinations
from statistics import fmean

import pytest

from pipeline.evaluation.best_of import best_weights, kl_bound, measured_kl


def test_the_bound() -> None:
    """ln 4 - 3/4 = 0.6362944; one sample is the policy itself."""
    assert kl_bound(4) == pytest.approx(0.6362944, abs=1e-7)
    assert kl_bound(1) == 0.0


def test_weights_by_hand() -> None:
    """Of 3 samples the pairs are 12, 13 and 23: the second is best of one, the third of two."""
    assert best_weights([1.0, 2.0, 3.0], 2) == pytest.approx([0, 1 / 3, 2 / 3])
    assert best_weights([3.0, 1.0, 2.0], 3) == pytest.approx([1, 0, 0])
    assert best_weights([5.0, 1.0], 1) == pytest.approx([1 / 2, 1 / 2])


def test_samples_that_tie_share() -> None:
    assert best_weights([1.0, 2.0, 2.0], 2) == pytest.approx([0, 1 / 2, 1 / 2])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_expected_maximum_is_that_of_all_draws(n: int) -> None:
    scores = [0.3, -1.0, 2.0, 0.3, 0.7]
    expected = fmean(max(chosen) for chosen in combinations(scores, n))
    found = sum(weight * score for weight, score in zip(best_weights(scores, n), scores, strict=True))
    assert found == pytest.approx(expected)
    assert sum(best_weights(scores, n)) == pytest.approx(1.0)


def test_kl_by_hand() -> None:
    """The best of 2 gives the worse of two equally likely answers 1/4: 1/4 ln 1/2 + 3/4 ln 3/2 = 0.1308120."""
    assert measured_kl([1.0, 2.0], 2) == pytest.approx(0.1308120, abs=1e-7)


def test_answers_that_all_tie_leave_the_policy_what_it_is() -> None:
    assert measured_kl([1.0] * 8, 4) == pytest.approx(0.0)


def test_kl_with_ties_is_below_the_bound_and_without_them_near_it() -> None:
    """Of four scores of equal share the best of 4 has 1, 15, 65 and 175 parts of 256: the sum of their shares times
    ln(parts / 64) is 0.5903102.
    """
    different, tied = list(range(512)), [score // 128 for score in range(512)]
    # 512 samples tell nothing of what is rarer: the error of the sum is of the order of n / 512.
    assert measured_kl(different, 4) == pytest.approx(kl_bound(4), abs=0.01)
    assert measured_kl(different, 4) < kl_bound(4)
    assert measured_kl(tied, 4) == pytest.approx(0.5903102, abs=1e-7)
    assert math.isclose(measured_kl(tied, 1), 0.0, abs_tol=1e-12)
