"""How often stated probabilities come true: accuracy, expected calibration error, and the points of a plot."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from pipeline.errors import DataError

BINS = 10
"""Bins of equal width over confidences from 1/2 to 1."""
_EDGES = [0.5 + number / (2 * BINS) for number in range(1, BINS)]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Pairs whose confidence lies from ``low`` up to ``high``; ``confidence`` and ``accuracy`` are their means."""

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What probabilities of orders were worth.

    Attributes:
        pairs: how many there were.
        accuracy: share of pairs in the right order; a probability of exactly 1/2 counts one half.
        accuracy_se: its standard error, as if all pairs were independent.
        expected_calibration_error: mean over pairs of the distance between confidence and accuracy of their bin.
        mean_confidence: mean of ``max(p, 1 - p)``; above the accuracy where a judge is too sure of itself.
        bins: those that are not empty, ascending.
    """

    pairs: int
    accuracy: float
    accuracy_se: float
    expected_calibration_error: float
    mean_confidence: float
    bins: tuple[Bin, ...]

    @property
    def above_chance(self) -> bool:
        """Whether the accuracy is more than two standard errors above that of a coin."""
        return self.accuracy - 2 * self.accuracy_se > 0.5


def calibrate(probabilities: Sequence[float]) -> Calibration:
    """The calibration of the probabilities of orders that are known to be right.

    A pair's confidence is ``max(p, 1 - p)``, and it is right where p > 1/2: which answer stands first does not matter.
    Confidences fall into `BINS` bins of equal width from 1/2 to 1, each with its lower edge, the last with both. The
    expected calibration error is ``sum_b n_b / n * |accuracy_b - confidence_b|`` (arXiv:1706.04599).

    Raises:
        DataError: there are none, or one is no probability.
    """
    if not probabilities:
        raise DataError("there are no pairs to measure a calibration on: hold out more prompts")
    if wrong := [p for p in probabilities if not 0 <= p <= 1]:
        raise DataError(f"{wrong[0]} is no probability: the judge that gave it is broken")
    judged = [(max(p, 1 - p), 0.5 if p == 0.5 else float(p > 0.5)) for p in probabilities]
    places = [bisect_right(_EDGES, confidence) for confidence, _ in judged]
    bins = tuple(
        _bin(number, [pair for pair, place in zip(judged, places, strict=True) if place == number])
        for number in sorted(set(places))
    )
    count = len(judged)
    accuracy = sum(right for _, right in judged) / count
    return Calibration(
        pairs=count,
        accuracy=accuracy,
        accuracy_se=sqrt(accuracy * (1 - accuracy) / count),
        expected_calibration_error=sum(b.pairs * abs(b.accuracy - b.confidence) for b in bins) / count,
        mean_confidence=sum(confidence for confidence, _ in judged) / count,
        bins=bins,
    )


def _bin(number: int, judged: Sequence[tuple[float, float]]) -> Bin:
    return Bin(
        low=0.5 + number / (2 * BINS),
        high=0.5 + (number + 1) / (2 * BINS),
        pairs=len(judged),
        confidence=sum(confidence for confidence, _ in judged) / len(judged),
        accuracy=sum(right for _, right in judged) / len(judged),
    )
