"""Means over runs that differ by their seeds, with intervals; compared by held-out prompt, where both have a score.

Runs of several seeds have their own warm starts, prompts and samples, so their means are independent. What is told is
the mean of these means, and Student's interval of them: with three runs it is 4.30 standard errors wide on each side,
and no run's prompts, however many, make it narrower.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.errors import DataError
from pipeline.evaluation.metrics import Scores
from pipeline.evaluation.paired_test import sign_flip_test

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and its 95% interval.

    Attributes:
        half: half of the interval's width; NaN of a single value.
        runs: how many runs there are. Of one run the interval is over its prompts alone.
        prompts: how many prompts they have together.
    """

    mean: float
    half: float
    runs: int
    prompts: int

    @property
    def low(self) -> float:
        """Returns the lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Returns the upper end."""
        return self.mean + self.half


@dataclass(frozen=True)
class Difference:
    """How much one policy's score is above another's, paired by run and prompt.

    Attributes:
        p: of the two-sided sign-flip test over the prompts of all runs: whether these very runs differ, which says
            nothing of other seeds.
    """

    interval: Interval
    p: float


def over_runs(runs: Sequence[Sequence[float]]) -> Interval:
    """Computes the mean of the runs' means and Student's interval of it; of a single run, the interval of its values.

    Args:
        runs: the values of each run, such as scores of its prompts.

    Raises:
        DataError: there is no run, or one without values.
    """
    if not runs or not all(runs):
        raise DataError("a run has no value to take a mean of: leave it out")
    means = [fmean(run) for run in runs]
    sample = means if len(runs) > 1 else runs[0]
    half = math.nan
    if len(sample) > 1:
        half = student_quantile(len(sample) - 1) * stdev(sample) / math.sqrt(len(sample))
    return Interval(fmean(means), half, len(runs), sum(map(len, runs)))


def difference(runs: Sequence[Scores], others: Sequence[Scores]) -> Difference:
    """Compares two policies over runs, one minus other, by the prompts that both have a score of.

    Args:
        runs, others: scores by prompt of each run; the same places have the same seed.
    """
    pairs = [_paired(one, other) for one, other in zip(runs, others, strict=True)]
    differences = [[a - b for a, b in run] for run in pairs]
    test = sign_flip_test([each for run in differences for each in run])
    return Difference(over_runs(differences), min(1.0, 2 * min(test.loss, test.gain)))


def wins(runs: Sequence[Scores], others: Sequence[Scores]) -> Interval:
    """Computes the share of prompts on which the one scores higher than the other; a tie counts one half."""
    pairs = [_paired(one, other) for one, other in zip(runs, others, strict=True)]
    return over_runs([[0.5 * ((a > b) + (a >= b)) for a, b in run] for run in pairs])


def mixed(points: Sequence[tuple[float, Scores]], kl: float) -> Scores | None:
    """Returns what policies score at a KL if two of them are mixed, of all pairs the one with the highest mean.

    A mixture that answers a prompt with the one policy or the other, by a coin, scores the mean of theirs, and its KL
    to a reference is at most the mean of theirs, as the KL is convex. So the policies reach at least this: it is their
    upper concave envelope. It is chosen by the scores that it returns, which favours many points a little.

    Args:
        points: the KL of each policy, and the scores of its prompts.

    Returns:
        Scores of the prompts that both have scored; None if no two policies have the KL between them.
    """
    found: dict[str, float] | None = None
    for left, low in points:
        for right, high in points:
            if not left <= kl <= right:
                continue
            share = (kl - left) / (right - left) if right > left else 0.0
            scores = {
                prompt: (1 - share) * first + share * last
                for prompt, first in low.items()
                if first is not None and (last := high.get(prompt)) is not None
            }
            if scores and (found is None or fmean(scores.values()) > fmean(found.values())):
                found = scores
    return found


def student_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Returns the t with ``P(|T| <= t) = confidence`` of Student's distribution, for a whole number of degrees.

    The distribution function is the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4; it is inverted by
    bisection.
    """
    low, high = 0.0, 1.0
    while _student(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _student(t: float, degrees: int) -> float:
    """Returns ``P(|T| <= t)``."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= square * step / (step + 1)
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + sine * total)


def _paired(scores: Scores, others: Mapping[str, float | None]) -> list[tuple[float, float]]:
    return [
        (score, other)
        for prompt, score in scores.items()
        if score is not None and (other := others.get(prompt)) is not None
    ]
