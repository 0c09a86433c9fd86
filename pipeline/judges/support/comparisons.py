"""Who is compared with whom, and what the comparisons say of each: the mathematics of pairwise and listwise judges."""

import math
import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

import numpy as np

from pipeline.judges.support.posterior import Floats, Posterior
from pipeline.judges.support.stated import order_probability

MOST_EXACT = 8
"""Candidates of a prompt up to which the probabilities of their orders are integrated, which takes 0.2 s."""
PRIOR_STD = 2.0
"""Standard deviation of the prior of a candidate's strength, in nats of log-odds: 95% of the pairs of two strangers
have odds below 260 to 1. It keeps the strength of a candidate that wins, or loses, all its comparisons finite."""


def schedule(count: int, opponents: int | None, rng: random.Random) -> list[tuple[int, int]]:
    """Chooses pairs of candidates to compare: all, or in a drawn circle each with as many neighbours on either side.

    With a bound each candidate has the same number of opponents, and any two are connected through others.
    """
    if opponents is None or opponents >= count - 1:
        return list(combinations(range(count), 2))
    order = list(range(count))
    rng.shuffle(order)
    pairs = {
        tuple(sorted((order[place], order[(place + step) % count])))
        for place in range(count)
        for step in range(1, opponents // 2 + 1)
    }
    return sorted((a, b) for a, b in pairs)


def strengths(count: int, wins: Mapping[tuple[int, int], float]) -> tuple[Floats, Floats]:
    """Computes Bradley-Terry strengths (1952) under a normal prior, in nats of log-odds, with standard deviations.

    ``P(a beats b) = sigmoid(s_a - s_b)``; the strengths are the posterior's mode, their deviations those of the
    normal approximation around it. They sum to 0. If each is compared with each, their order is that of the
    shares of wins (Ford 1957).

    Args:
        wins: ``wins[a, b]`` is how often a beat b; a tie is half a win for each.
    """
    strengths_K, covariance_K_K = Posterior(count, wins, PRIOR_STD).mode()
    return strengths_K, np.sqrt(np.diag(covariance_K_K))


def strength_orders(count: int, wins: Mapping[tuple[int, int], float]) -> tuple[Floats, Floats]:
    """Computes at ``[a, b]`` the probability that a is stronger than b, and their difference's standard deviation.

    The comparisons determine differences alone: the deviations of single strengths hold a common level beside them,
    which is not independent. So the deviation of a difference is ``sqrt(V_aa + V_bb - 2 V_ab)``. The probability is
    that of the posterior, see `Posterior.order_probability`; of more than `MOST_EXACT` candidates that of its normal
    approximation.
    """
    posterior = Posterior(count, wins, PRIOR_STD)
    mean_K, covariance_K_K = posterior.mode()
    variance_K = np.diag(covariance_K_K)
    spread_K_K = np.sqrt(np.maximum(variance_K[:, None] + variance_K[None, :] - 2 * covariance_K_K, 0.0))
    beats_K_K = np.full((count, count), 0.5)
    for a, b in combinations(range(count), 2):
        mean, spread = float(mean_K[a] - mean_K[b]), float(spread_K_K[a, b])
        exact = count <= MOST_EXACT
        beats = posterior.order_probability(a, b, mean, spread) if exact else order_probability(mean, spread)
        beats_K_K[a, b], beats_K_K[b, a] = beats, 1 - beats
    return beats_K_K, spread_K_K


def shuffles(count: int, number: int, rng: random.Random) -> list[list[int]]:
    """Draws orders in which to show candidates; each second one reverses the one before, so that places even out."""
    orders: list[list[int]] = []
    for place in range(number):
        orders.append(orders[-1][::-1] if place % 2 else rng.sample(range(count), count))
    return orders


def places(ranking: Sequence[int], count: int) -> list[float]:
    """Returns the share of the others behind each candidate of a ranking: 1 for the best, 0 for the last."""
    scores = [0.0] * count
    for place, candidate in enumerate(ranking):
        scores[candidate] = 1 - place / (count - 1)
    return scores


def mean_place(found: Sequence[float], count: int) -> tuple[float, float]:
    """Computes the mean of a candidate's places over shuffles, and the standard error of that mean."""
    variance = (count + 1) / (12 * (count - 1))  # of a place in an order that is drawn
    return fmean(found), _standard_error(found, variance)


def place_difference(first: Sequence[float], second: Sequence[float], count: int) -> tuple[float, float]:
    """Computes the mean difference of two candidates' places over the same shuffles, and its standard error."""
    variance = count * (count + 1) / (6 * (count - 1) ** 2)  # of a difference of two places in an order that is drawn
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return fmean(differences), _standard_error(differences, variance)


def _standard_error(values: Sequence[float], drawn: float) -> float:
    """Computes the standard error of the mean of few values, ``sqrt(s2 / n)``, never 0.

    The variance is ``s2 = (drawn + sum (x - mean)**2) / n``. To the ``n - 1`` degrees of freedom that were seen it adds
    one, of orders that say nothing: the mean of a scaled inverse chi-square's conjugate prior. Without it two shuffles
    that agree by chance would be certain for ever.
    """
    mean = fmean(values)
    return math.sqrt((drawn + math.fsum((value - mean) ** 2 for value in values)) / len(values) / len(values))
