"""The sign-flip test: by hand, against all ways to sign the differences, and its errors where nothing changes."""

from itertools import product
from math import comb

import numpy as np
import pytest

from pipeline.evaluation.paired_test import sign_flip_test


def test_by_hand() -> None:
    """Of four differences that are not 0 one is positive: of the 16 signings 1 has none, and 4 have one."""
    found = sign_flip_test([-1, -1, -1, 0, 1])
    assert (found.loss, found.gain) == (5 / 16, 15 / 16)
    # Of 3, 1 and 2 the 1 is positive. The 8 sums of those that may be are 0, 1, 2, 3, 3, 4, 5, 6: two are at most 1.
    found = sign_flip_test([-3, 1, -2])
    assert (found.loss, found.gain) == (2 / 8, 7 / 8)
    assert sign_flip_test([-0.5] * 10).loss == 2**-10
    assert sign_flip_test([0.5] * 10).gain == 2**-10


@pytest.mark.parametrize("differences", [[], [0.0, 0.0]])
def test_what_has_not_changed_says_nothing(differences: list[float]) -> None:
    found = sign_flip_test(differences)
    assert (found.loss, found.gain) == (1.0, 1.0)


def test_scores_of_0_and_1_give_the_sign_test() -> None:
    """McNemar's exact test: of 30 answers that changed 8 got better."""
    found = sign_flip_test([-1.0] * 22 + [1.0] * 8 + [0.0] * 70)
    assert found.loss == pytest.approx(sum(comb(30, k) for k in range(9)) / 2**30, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_against_all_signings(seed: int) -> None:
    """Whole numbers up to 50 are told apart exactly, so that only rounding errors of sums of powers of 2 are left."""
    differences = np.random.default_rng(seed).integers(-50, 51, size=12)
    magnitudes = np.abs(differences[differences != 0])
    magnitudes = np.append(magnitudes, 50)  # so that a part of the largest is a whole number
    observed = [*differences.tolist(), -50]
    sums = [
        sum(m * s for m, s in zip(magnitudes, signs, strict=True)) for signs in product((-1, 1), repeat=len(magnitudes))
    ]
    found = sign_flip_test(observed)
    assert found.loss == pytest.approx(np.mean([total <= sum(observed) for total in sums]), abs=1e-12)
    assert found.gain == pytest.approx(np.mean([total >= sum(observed) for total in sums]), abs=1e-12)


def test_error_rate_where_nothing_changes() -> None:
    """At the level 0.05 at most 5% of 2,000 tests on noise with seed 0 may err: 0.05 and three standard errors."""
    noise = np.random.default_rng(0).standard_exponential(size=(2, 2000, 40))  # far from normal, and of one law
    found = [sign_flip_test((after - before).tolist()) for before, after in zip(*noise, strict=True)]
    for errors in ([test.loss <= 0.05 for test in found], [test.gain <= 0.05 for test in found]):
        assert 0.03 < np.mean(errors) < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_of_many_prompts_rounding_changes_little() -> None:
    """Of 4,096 each difference is rounded to a hundredth of the largest; by the normal law p is 0.1587 at -1."""
    noise = np.random.default_rng(1).standard_normal(4096)
    shifted = noise - noise.mean() - noise.std() / 64  # one standard error below 0
    assert sign_flip_test(shifted.tolist()).loss == pytest.approx(0.1587, abs=0.01)
