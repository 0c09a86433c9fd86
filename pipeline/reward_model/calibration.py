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
        accuracy: mean of how right the orders are; a probability of exactly 1/2 counts one half.
        accuracy_se: its standard error, as if all pairs were independent.
        expected_calibration_error: mean over pairs of the distance between confidence and accuracy of their bin.
        mean_confidence: mean of ``max(p, 1 - p)``; above the accuracy if a judge is too sure of itself.
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
        """Says whether the accuracy is more than two standard errors above that of a coin."""
        return self.accuracy - 2 * self.accuracy_se > 0.5


def calibrate(probabilities: Sequence[float], labels: Sequence[float] | None = None) -> Calibration:
    """Computes the calibration of the probabilities of orders.

    A pair's confidence is ``max(p, 1 - p)``. Its accuracy is the label if p > 1/2, else one minus the label. So which
    answer stands first does not matter, and a model that gives the labels themselves has no error.
    Confidences fall into `BINS` bins of equal width from 1/2 to 1, each with its lower edge, the last with both. The
    expected calibration error is ``sum_b n_b / n * |accuracy_b - confidence_b|`` (arXiv:1706.04599).

    Args:
        labels: the probability that each order is right; without them all are certain.

    Raises:
        DataError: there are none, or one is no probability.
    """
    if not probabilities:
        raise DataError("there are no pairs to measure a calibration on: hold out more prompts")
    if wrong := [p for p in probabilities if not 0 <= p <= 1]:
        raise DataError(f"{wrong[0]} is no probability: the judge that gave it is broken")
    known = [1.0] * len(probabilities) if labels is None else labels
    judged = [(max(p, 1 - p), _rightness(p, label)) for p, label in zip(probabilities, known, strict=True)]
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


def _rightness(p: float, label: float) -> float:
    if p == 0.5:
        return 0.5
    return label if p > 0.5 else 1 - label


def _bin(number: int, judged: Sequence[tuple[float, float]]) -> Bin:
    return Bin(
        low=0.5 + number / (2 * BINS),
        high=0.5 + (number + 1) / (2 * BINS),
        pairs=len(judged),
        confidence=sum(confidence for confidence, _ in judged) / len(judged),
        accuracy=sum(right for _, right in judged) / len(judged),
    )
