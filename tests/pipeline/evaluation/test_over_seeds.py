"""Intervals over runs of several seeds, and paired comparisons; the arithmetic stands in each docstring."""

import math

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.over_seeds import difference, mixed, over_runs, student_quantile, wins

CLOSE = {"abs": 1e-4}
"""As many digits as are written below."""


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_student(degrees: int, quantile: float) -> None:
    """As tables of the distribution have it, for even and odd degrees."""
    assert student_quantile(degrees) == pytest.approx(quantile, **CLOSE)


def test_the_interval_is_over_runs() -> None:
    """Means 2, 3 and 6: mean 11/3, variance (25/9 + 4/9 + 49/9) / 2 = 13/3, half 4.3027 sqrt(13/9) = 5.1711."""
    found = over_runs([[1, 3], [2, 4], [6, 6]])
    assert (found.mean, found.half) == (pytest.approx(11 / 3), pytest.approx(5.1711, **CLOSE))
    assert (found.runs, found.prompts) == (3, 6)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)


def test_more_prompts_that_say_the_same_do_not_narrow_it() -> None:
    few, many = (over_runs([[1.0] * count, [2.0] * count]) for count in (1, 100))
    assert few.half == many.half


def test_a_single_run_has_the_interval_of_its_prompts() -> None:
    """Values 1, 2, 3: half 4.3027 * 1 / sqrt 3 = 2.4841; a single value has none."""
    assert over_runs([[1, 2, 3]]).half == pytest.approx(2.4841, **CLOSE)
    assert math.isnan(over_runs([[1.0]]).half)


def test_nothing_to_take_a_mean_of() -> None:
    with pytest.raises(DataError, match="no value"):
        over_runs([])
    with pytest.raises(DataError, match="no value"):
        over_runs([[1.0], []])


def test_differences_are_paired_by_prompt() -> None:
    """Differences 1, 0.5 and 2, 0.5: means 0.75 and 1.25, so mean 1 and half 12.7062 * 0.25 = 3.1766.

    c has no score in the other, and is left out. All four are positive: 2 of the 16 ways to sign them are as extreme.
    """
    found = difference(
        [{"a": 2.0, "b": 1.0, "c": 9.0}, {"a": 3.0, "b": 1.0}], [{"b": 0.5, "a": 1.0, "c": None}, {"a": 1.0, "b": 0.5}]
    )
    assert (found.interval.mean, found.interval.half) == (pytest.approx(1.0), pytest.approx(3.1766, **CLOSE))
    assert found.interval.prompts == 4
    assert found.p == pytest.approx(2 / 16)


def test_no_difference_is_no_evidence() -> None:
    assert difference([{"a": 1.0}], [{"a": 1.0}]).p == 1.0


def test_a_tie_counts_half() -> None:
    """A win, a tie and a loss are 1/2; two wins are 1: mean 3/4, half 12.7062 * 0.25."""
    found = wins(
        [{"a": 2.0, "b": 1.0, "c": 0.0}, {"a": 2.0, "b": 2.0}], [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 0.0}]
    )
    assert (found.mean, found.half) == (pytest.approx(0.75), pytest.approx(3.1766, **CLOSE))


def test_two_policies_mixed() -> None:
    """At 0.5, a quarter of the way from 0 to 2: a is 0.25 of 4, b stays, c has no score after."""
    points = [(0.0, {"a": 0.0, "b": 1.0, "c": 1.0}), (2.0, {"a": 4.0, "b": 1.0, "c": None}), (3.0, {"a": 6.0})]
    assert mixed(points, 0.5) == {"a": 1.0, "b": 1.0}
    assert mixed(points, 2.5) == {"a": 5.0}
    assert mixed(points, 3.5) is None
    assert mixed(points[:1], 0.0) == {"a": 0.0, "b": 1.0, "c": 1.0}


def test_of_all_mixtures_the_best_counts() -> None:
    """At 1 the policies of 0 and 2 mixed score 3, one of KL 1 scores 1, and those of 0 and 4 score 2."""
    points = [(0.0, {"a": 0.0}), (1.0, {"a": 1.0}), (4.0, {"a": 8.0}), (2.0, {"a": 6.0})]
    assert mixed(points, 1.0) == {"a": 3.0}
    assert mixed(points, 3.0) == {"a": 7.0}
