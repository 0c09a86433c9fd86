"""Best of n: what the best of n samples of a policy scores, and how far its distribution is from the policy's.

Both are estimated from N samples of a prompt, of which the n are a part. No policy is trained.
"""

import math
from collections.abc import Sequence
from math import comb


def kl_bound(n: int) -> float:
    """Returns ``log n - (n - 1) / n`` in nats: the KL of the best of n to the policy if no two samples tie, and the
    most that it can be if some do (arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def best_weights(scores: Sequence[float], n: int) -> list[float]:
    """Returns for each of N samples the probability that it is the best of n that are drawn from them at random.

    Without replacement, so that the weighted mean of anything over the samples is unbiased for the best of n. Samples
    that tie share their probability.

    Args:
        n: from 1 to N.
    """
    total = comb(len(scores), n)
    order = sorted(range(len(scores)), key=lambda index: scores[index])
    by_place = [comb(place, n - 1) / total for place in range(len(scores))]
    weights = [0.0] * len(scores)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        shared = math.fsum(by_place[start:end]) / (end - start)
        for place in range(start, end):
            weights[order[place]] = shared
        start = end
    return weights


def measured_kl(scores: Sequence[float], n: int) -> float:
    """Estimates the KL of the best of n to the policy on a prompt from the scores of N samples, in nats.

    Let F be the share of the policy's answers that score no more than an answer, and G that of those that score less.
    If ties are broken at random, the best of n gives an answer ``(F^n - G^n) / (F - G)`` times its probability under
    the policy, so that the KL is ``sum (F^n - G^n) log((F^n - G^n) / (F - G))`` over the different scores. F and G are
    those of the samples. With n near N that is too low: N samples tell nothing of answers rarer than 1 / N.
    """
    count = len(scores)
    different = sorted(set(scores))
    total, below = 0.0, 0
    for score in different:
        above = below + sum(other == score for other in scores)
        mass = (above / count) ** n - (below / count) ** n
        if mass > 0:
            total += mass * math.log(mass / ((above - below) / count))
        below = above
    return total
