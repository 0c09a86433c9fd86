"""Who is compared with whom, and what the comparisons say of each: the mathematics of pairwise and listwise judges."""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

PRIOR_STD = 2.0
"""Standard deviation of the prior of a candidate's strength, in nats of log-odds: 95% of the pairs of two strangers
have odds below 260 to 1. It keeps the strength of a candidate that wins, or loses, all its comparisons finite."""


def schedule(count: int, opponents: int | None, rng: random.Random) -> list[tuple[int, int]]:
    """Pairs of candidates to compare: all, or in a drawn circle each with as many neighbours on either side.

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


def strengths(
    count: int, wins: Mapping[tuple[int, int], float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Bradley-Terry strengths (1952) under a normal prior, in nats of log-odds, with their standard deviations.

    ``P(a beats b) = sigmoid(s_a - s_b)``; the strengths are the posterior's mode, their deviations those of the
    normal approximation around it. They sum to 0. Where each is compared with each, their order is that of the
    shares of wins (Ford 1957).

    Args:
        wins: ``wins[a, b]`` is how often a beat b; a tie is half a win for each.
    """
    won_K_K = np.zeros((count, count))
    for (a, b), number in wins.items():
        won_K_K[a, b] += number
    played_K_K = won_K_K + won_K_K.T
    strengths_K = np.zeros(count)
    precision = np.eye(count) / PRIOR_STD**2
    # The log-posterior is concave, and with so wide a prior a few Newton steps reach its mode; small ones are safe.
    for _ in range(100):
        expected_K_K = 1 / (1 + np.exp(strengths_K[None, :] - strengths_K[:, None]))
        gradient_K = won_K_K.sum(1) - (played_K_K * expected_K_K).sum(1) - strengths_K / PRIOR_STD**2
        weight_K_K = played_K_K * expected_K_K * (1 - expected_K_K)
        hessian_K_K = np.diag(weight_K_K.sum(1)) - weight_K_K + precision
        step_K = np.linalg.solve(hessian_K_K, gradient_K)
        strengths_K += step_K / max(1.0, float(np.abs(step_K).max()))
        if np.abs(step_K).max() < 1e-12:
            break
    return strengths_K, np.sqrt(np.diag(np.linalg.inv(hessian_K_K)))


def shuffles(count: int, number: int, rng: random.Random) -> list[list[int]]:
    """Orders in which to show candidates; every second is the one before it from behind, so that places even out."""
    orders: list[list[int]] = []
    for place in range(number):
        orders.append(orders[-1][::-1] if place % 2 else rng.sample(range(count), count))
    return orders


def places(ranking: Sequence[int], count: int) -> list[float]:
    """Of each candidate in a ranking, best first, the share of the others behind it: 1 for the best, 0 for the last."""
    scores = [0.0] * count
    for place, candidate in enumerate(ranking):
        scores[candidate] = 1 - place / (count - 1)
    return scores
