"""Losses of reward models: pure functions of what a classifier says of answers.

Axes: ``P`` pairs, ``A`` answers. ``label_P`` is the probability that the order of a pair is right, 1 if it is
certain. All return one loss for each pair or answer.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_REACH, _NODES = 8.0, 129
"""A normal variable is integrated over so many deviations to either side, at so many points."""


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, label_P: Tensor | float = 1.0) -> Tensor:
    """Computes ``-p log sigmoid(d) - (1 - p) log sigmoid(-d)`` with ``d = r_chosen - r_rejected`` and the label ``p``.

    For p = 1 it is the loss of Bradley and Terry (1952), as in arXiv:2203.02155; else its expectation over orders.
    """
    difference_P = chosen_P - rejected_P
    return -label_P * logsigmoid(difference_P) - (1 - label_P) * logsigmoid(-difference_P)


def scaled_bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, label_P: Tensor | float = 1.0
) -> Tensor:
    """Multiplies :func:`bradley_terry` by the margin ``m`` (HelpSteer2-Preference, arXiv:2410.01257, eq. 4).

    ``margin_P`` are weights from 0; their mean should be 1, for it acts as a factor of the learning rate.
    """
    return margin_P * bradley_terry(chosen_P, rejected_P, label_P)


def regression(reward_A: Tensor, rating_A: Tensor) -> Tensor:
    """Computes ``(r - rating)**2``: a reward in the unit of the ratings (HelpSteer2, arXiv:2406.08673)."""
    return (reward_A - rating_A) ** 2


def thurstone(chosen_P_2: Tensor, rejected_P_2: Tensor, label_P: Tensor | float = 1.0) -> Tensor:
    """Gives ``-p log Phi(z) - (1 - p) log Phi(-z)`` with ``z`` of :func:`standardised_difference` and the label ``p``.

    The likelihood of Thurstone (1927, case III), a probit: each reward is normal with a mean and a standard deviation
    of its own, and the higher draw wins. A common factor of all means and standard deviations changes nothing: the data
    do not fix the scale.
    """
    z_P = standardised_difference(chosen_P_2, rejected_P_2)
    return -label_P * torch.special.log_ndtr(z_P) - (1 - label_P) * torch.special.log_ndtr(-z_P)


def expected_logistic(chosen_P_2: Tensor, rejected_P_2: Tensor, label_P: Tensor | float = 1.0) -> Tensor:
    """Computes ``E[-p log sigmoid(d) - (1 - p) log sigmoid(-d)]`` over a normal ``d``, with the label ``p``.

    ``d`` has the mean ``mu_a - mu_b`` and the variance ``sigma_a**2 + sigma_b**2``: the logistic loss expected of
    rewards that are normal with a mean and a standard deviation of their own (HPSv3, arXiv:2508.03789). Unlike
    :func:`thurstone` it fixes the scale: rewards are in logits.
    """
    difference_P_N, weight_N = _nodes(chosen_P_2, rejected_P_2)
    # -log sigmoid(-d) is -log sigmoid(d) + d, whose mean is known.
    return -logsigmoid(difference_P_N) @ weight_N + (1 - label_P) * (chosen_P_2[..., 0] - rejected_P_2[..., 0])


def standardised_difference(first_P_2: Tensor, second_P_2: Tensor) -> Tensor:
    """Computes ``(mu_a - mu_b) / sqrt(sigma_a**2 + sigma_b**2)``; the last axis is a mean and a log deviation."""
    return (first_P_2[..., 0] - second_P_2[..., 0]) * torch.exp(-_log_spread(first_P_2, second_P_2))


def order_probability(first_P_H: Tensor, second_P_H: Tensor, *, logits: bool = False) -> Tensor:
    """Computes the probability that the first answer beats the second, shape ``[P]``.

    With one output each it is ``sigmoid(r_a - r_b)``. With two, a mean and a log standard deviation, it is ``Phi(z)``
    as :func:`thurstone` has it, or if rewards are in ``logits`` the expectation of ``sigmoid(d)``, as
    :func:`expected_logistic`.
    """
    if first_P_H.shape[-1] == 1:
        return torch.sigmoid(first_P_H[..., 0] - second_P_H[..., 0])
    if logits:
        difference_P_N, weight_N = _nodes(first_P_H, second_P_H)
        return torch.sigmoid(difference_P_N) @ weight_N
    return torch.special.ndtr(standardised_difference(first_P_H, second_P_H))


def _log_spread(first_P_2: Tensor, second_P_2: Tensor) -> Tensor:
    """Computes the logarithm of the standard deviation of the difference of two rewards."""
    return torch.logaddexp(2 * first_P_2[..., 1], 2 * second_P_2[..., 1]) / 2


def _nodes(first_P_2: Tensor, second_P_2: Tensor) -> tuple[Tensor, Tensor]:
    """Gives points of the difference of two rewards, and their weights in a mean.

    It is the trapezoidal rule, which converges geometrically for smooth functions that end in nothing on both sides: up
    to a deviation of 10 logits its error here is below 1e-6.
    """
    place_N = torch.linspace(-_REACH, _REACH, _NODES, device=first_P_2.device, dtype=first_P_2.dtype)
    weight_N = torch.exp(-place_N.square() / 2) * (2 * _REACH / (_NODES - 1) / math.sqrt(2 * math.pi))
    mean_P, spread_P = first_P_2[..., 0] - second_P_2[..., 0], torch.exp(_log_spread(first_P_2, second_P_2))
    return mean_P[..., None] + spread_P[..., None] * place_N, weight_N
