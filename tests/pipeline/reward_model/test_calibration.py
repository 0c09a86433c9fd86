"""Calibration, by hand and against its own definition on drawn outcomes."""

import math
import random

import pytest

from pipeline.errors import DataError
from pipeline.reward_model.calibration import BINS, calibrate


def test_by_hand() -> None:
    """Three pairs at 0.9, two of them right; one at 0.6, right; one coin's toss.

    Bins are 0.05 wide. [0.9, 0.95): confidence 0.9, accuracy 2/3. [0.6, 0.65): 0.6 and 1. [0.5, 0.55): 0.5 and 0.5.
    The error is (3 * |2/3 - 0.9| + |1 - 0.6| + 0) / 5 = (0.7 + 0.4) / 5.
    """
    found = calibrate([0.9, 0.9, 0.1, 0.6, 0.5])
    assert found.accuracy == pytest.approx(3.5 / 5)
    assert found.accuracy_se == pytest.approx(math.sqrt(0.7 * 0.3 / 5))
    assert found.expected_calibration_error == pytest.approx(1.1 / 5)
    assert found.mean_confidence == pytest.approx((3 * 0.9 + 0.6 + 0.5) / 5)
    assert [(b.pairs, b.low) for b in found.bins] == [(1, 0.5), (1, 0.6), (3, 0.9)]


def test_certainty_falls_into_the_last_bin() -> None:
    (last,) = calibrate([1.0, 0.0]).bins
    assert (last.pairs, last.high, last.accuracy, last.confidence) == (2, 1.0, 0.5, 1.0)
    assert calibrate([1.0, 0.0]).expected_calibration_error == 0.5


def test_probabilities_that_come_true_as_often_as_they_say_have_next_to_no_error() -> None:
    rng = random.Random(0)
    stated = [rng.uniform(0.5, 1) for _ in range(20_000)]
    told = [p if rng.random() < p else 1 - p for p in stated]  # as seen from the right answer
    found = calibrate(told)
    assert len(found.bins) == BINS
    # In each bin of 2,000 pairs the accuracy scatters by at most 0.011 (one standard deviation).
    assert found.expected_calibration_error < 0.02
    assert found.accuracy == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(("given", "message"), [([], "no pairs"), ([0.5, math.nan], "nan is no probability")])
def test_what_has_no_calibration(given: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibrate(given)


def test_a_coin_is_told_from_a_judge() -> None:
    """100 pairs, 70 right: 0.7 - 2 * sqrt(0.7 * 0.3 / 100) = 0.61; 55 right: 0.45, which a coin may reach."""
    right, wrong = 0.8, 0.2  # probabilities of the order that is known to be right
    assert calibrate([right] * 70 + [wrong] * 30).above_chance
    assert not calibrate([right] * 55 + [wrong] * 45).above_chance


def test_a_model_that_gives_the_labels_themselves_has_no_error() -> None:
    """As certain as the labels are, and no more: held against orders that are certain, its error was a quarter."""
    rng = random.Random(0)
    labels = [rng.random() for _ in range(2000)]
    found = calibrate(labels, labels)
    assert found.expected_calibration_error == pytest.approx(0, abs=1e-12)
    assert found.accuracy == pytest.approx(found.mean_confidence)
    upper = [max(label, 1 - label) for label in labels]  # rules put the likelier answer first
    assert calibrate(upper, upper).expected_calibration_error == pytest.approx(0, abs=1e-12)
    assert calibrate(upper).expected_calibration_error > 0.2


def test_how_right_an_order_is_by_its_label() -> None:
    """0.9 for a label of 0.8 is 0.8 right, 0.3 for 0.8 is 0.2 right, and 0.5 is half right whatever the label is."""
    found = calibrate([0.9, 0.3, 0.5], [0.8, 0.8, 0.9])
    assert found.accuracy == pytest.approx(1.5 / 3)
    assert found.expected_calibration_error == pytest.approx((abs(0.8 - 0.9) + abs(0.2 - 0.7) + 0) / 3)
