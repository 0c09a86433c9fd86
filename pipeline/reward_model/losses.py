"""Losses of reward models: pure functions of what a classifier says of answers.

Axes: ``P`` pairs, ``A`` answers. ``label_P`` is the probability that the order of a pair is right, 1 if it is
certain. All return one loss for each pair or answer.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, label_P: Tensor | float = 1.0) -> Tensor:
    """``-p log sigmoid(d) - (1 - p) log sigmoid(-d)`` with ``d = r_chosen - r_rejected`` and the label ``p``.

    For p = 1 the loss of Bradley and Terry (1952), as in arXiv:2203.02155; for others its expectation over orders.
    """
    difference_P = chosen_P - rejected_P
    return -label_P * logsigmoid(difference_P) - (1 - label_P) * logsigmoid(-difference_P)


def scaled_bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, label_P: Tensor | float = 1.0
) -> Tensor:
    """``m`` times :func:`bradley_terry`: a pair counts by its margin (HelpSteer2-Preference, arXiv:2410.01257, eq. 4).

    ``margin_P`` are weights from 0; their mean should be 1, for it acts as a factor of the learning rate.
    """
    return margin_P * bradley_terry(chosen_P, rejected_P, label_P)


def regression(reward_A: Tensor, rating_A: Tensor) -> Tensor:
    """``(r - rating)**2``: a reward in the unit of the ratings (HelpSteer2, arXiv:2406.08673)."""
    return (reward_A - rating_A) ** 2


def uncertainty_ranking(chosen_P_2: Tensor, rejected_P_2: Tensor, label_P: Tensor | float = 1.0) -> Tensor:
    """``-p log Phi(z) - (1 - p) log Phi(-z)`` with ``z`` of :func:`standardised_difference` and the label ``p``.

    Each reward is normal with a mean and a standard deviation of its own (HPSv3, arXiv:2508.03789). A common factor of
    all means and standard deviations changes nothing: the data do not fix the scale.
    """
    z_P = standardised_difference(chosen_P_2, rejected_P_2)
    return -label_P * torch.special.log_ndtr(z_P) - (1 - label_P) * torch.special.log_ndtr(-z_P)


def standardised_difference(first_P_2: Tensor, second_P_2: Tensor) -> Tensor:
    """``(mu_a - mu_b) / sqrt(sigma_a**2 + sigma_b**2)``; the last axis holds a mean and a log standard deviation."""
    log_spread_P = torch.logaddexp(2 * first_P_2[..., 1], 2 * second_P_2[..., 1]) / 2
    return (first_P_2[..., 0] - second_P_2[..., 0]) * torch.exp(-log_spread_P)


def order_probability(first_P_H: Tensor, second_P_H: Tensor) -> Tensor:
    """Probability that the first answer beats the second, shape ``[P]``.

    ``sigmoid(r_a - r_b)`` of one output each; ``Phi(z)`` of two, a mean and a log standard deviation.
    """
    if first_P_H.shape[-1] == 1:
        return torch.sigmoid(first_P_H[..., 0] - second_P_H[..., 0])
    return torch.special.ndtr(standardised_difference(first_P_H, second_P_H))
