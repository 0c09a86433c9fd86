"""How probable an order is by what a judge states, with a penalty of length and without, by enumeration."""

from itertools import product
from statistics import NormalDist
from typing import Any

import pytest

from pipeline.judges.support.stated import BEATS, LEVEL, SPREAD, TURNED
from pipeline.preferences.candidates import Candidate, Stated
from pipeline.preferences.order import probability

PHI = NormalDist().cdf


def candidate(index: int, score: float, penalty: float = 0.0, std: float | None = None, **stated: Any) -> Candidate:
    return Candidate(index, (1,), "w", False, -1.0, score, std, Stated(**stated), penalty)


def p(better: Candidate, worse: Candidate) -> float | None:
    return probability(better, worse, "prompt")


def test_names_of_what_is_stated() -> None:
    """Stores hold them."""
    assert (BEATS, SPREAD, LEVEL, TURNED) == ("beats.", "spread.", "level.", "error_rate")


@pytest.mark.parametrize("penalty", [0.0, 0.3, 1.0, 1.7, -2.5])
def test_levels_are_counted(penalty: float) -> None:
    """By normal scores 5 with 0.95 and 1 with 0.05 beat a certain 4 with 0.82; they do so in 0.95 of the cases."""
    levels = ({5: 0.95, 1: 0.05}, {4: 0.6, 3: 0.4})
    a = candidate(0, 4.8, penalty, 0.87, levels=levels[0])
    b = candidate(1, 3.6, 0.0, 0.49, levels=levels[1])
    expected = sum(
        q * r * (1.0 if x - penalty > y else 0.5 if x - penalty == y else 0.0)
        for (x, q), (y, r) in product(levels[0].items(), levels[1].items())
    )
    assert p(a, b) == pytest.approx(expected)
    assert p(b, a) == pytest.approx(1 - expected)
    certain = candidate(1, 4.0, 0.0, 0.0, levels={4: 1.0})
    assert p(candidate(0, 4.8, 0.0, 0.87, levels=levels[0]), certain) == pytest.approx(0.95)


@pytest.mark.parametrize("penalty", [0.0, 0.3, 0.6, 0.9])
def test_an_order_that_is_turned_round_is_enumerated(penalty: float) -> None:
    """A score of 0.6 more, that is 0.6 less with a probability of 0.2: which of the two is above the penalty?"""
    a = candidate(0, 0.6, penalty, beats={1: 0.8}, turned=0.2)
    b = candidate(1, 0.0, beats={0: 0.2}, turned=0.2)
    above = {0.0: 0.8, 0.3: 0.8, 0.6: 0.4, 0.9: 0.0}[penalty]
    assert p(a, b) == pytest.approx(above)
    assert p(b, a) == pytest.approx(1 - above)


@pytest.mark.parametrize("penalty", [0.0, 0.4, 1.0, 2.0])
def test_a_stated_probability_moves_with_the_penalty(penalty: float) -> None:
    """A normal difference of 1 with the deviation 0.8: Phi((1 - penalty) / 0.8), whether the spread is said or not."""
    beats = PHI(1 / 0.8)
    for spread in ({1: 0.8}, {}):
        a = candidate(0, 1.0, penalty, beats={1: beats}, spread=spread)
        assert p(a, candidate(1, 0.0)) == pytest.approx(PHI((1 - penalty) / 0.8))
    # Equal scores imply no spread; the judge's word stands.
    assert p(candidate(0, 0.0, penalty, beats={1: 0.5}), candidate(1, 0.0)) == 0.5
    assert p(candidate(0, 0.0, penalty, beats={1: 0.5}, spread={1: 0.8}), candidate(1, 0.0)) == pytest.approx(
        PHI(-penalty / 0.8)
    )


def test_what_is_certain_stays_so() -> None:
    for spread in ({1: 0.0}, {}):
        assert p(candidate(0, 1.0, 0.5, beats={1: 1.0}, spread=spread), candidate(1, 0.0)) == 1.0
        assert p(candidate(0, 1.0, 1.5, beats={1: 1.0}, spread=spread), candidate(1, 0.0)) == 0.0
    assert p(candidate(0, 1.0, 0.5, beats={1: 1.5}), candidate(1, 0.0)) is None
