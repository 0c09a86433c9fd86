"""Preference objectives: pure functions from log-probabilities to one loss for each preference.

Shapes: ``[P]`` for pairs, ``[P, K]`` for rankings with the best candidate first. A *log-ratio* is the
log-probability of a whole candidate under the policy minus that under the reference, in nats, summed over its
tokens. Losses are in nats unless stated, one for each preference and never averaged: the caller divides by
the number of preferences in the optimizer step.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _logistic(margins_P: Tensor, order_right_P: Tensor | float) -> Tensor:
    """Computes the cross-entropy in nats between the probability that the order is right and sigmoid(margin)."""
    return -order_right_P * F.logsigmoid(margins_P) - (1 - order_right_P) * F.logsigmoid(-margins_P)


def _smoothed(soft_labels_P: Tensor | None, label_smoothing: float) -> Tensor | float:
    """Returns the probability that the order is right, when a label is flipped with probability ``label_smoothing``."""
    if soft_labels_P is None:
        return 1 - label_smoothing
    return soft_labels_P * (1 - label_smoothing) + (1 - soft_labels_P) * label_smoothing


def sigmoid(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    soft_labels_P: Tensor | None = None,
) -> Tensor:
    """Computes Bradley-Terry on implicit rewards, arXiv:2305.18290 (7): ``-log sigmoid(beta (chosen - rejected))``.

    Takes log-ratios. With ``label_smoothing`` e the label is right with probability 1 - e (conservative DPO);
    with ``soft_labels_P`` p, it is right with probability p for that pair: ``-p log sigmoid(m) - (1 - p) log
    sigmoid(-m)``.
    """
    return _logistic(beta * (chosen_P - rejected_P), _smoothed(soft_labels_P, label_smoothing))


def sigmoid_norm(
    chosen_P: Tensor,
    rejected_P: Tensor,
    chosen_lengths_P: Tensor,
    rejected_lengths_P: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    soft_labels_P: Tensor | None = None,
) -> Tensor:
    """Computes length-normalised DPO, arXiv:2411.15124: `sigmoid` of log-ratios divided by their lengths in tokens."""
    margins_P = beta * (chosen_P / chosen_lengths_P - rejected_P / rejected_lengths_P)
    return _logistic(margins_P, _smoothed(soft_labels_P, label_smoothing))


def robust(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Computes a loss that is unbiased under labels flipped at rate e, arXiv:2403.00409: ``(-(1 - e) log sigmoid(m) + e
    log sigmoid(-m)) / (1 - 2 e)`` with ``m = beta (chosen - rejected)``. e < 1/2.
    """
    margins_P = beta * (chosen_P - rejected_P)
    losses_P = -(1 - label_smoothing) * F.logsigmoid(margins_P) + label_smoothing * F.logsigmoid(-margins_P)
    return losses_P / (1 - 2 * label_smoothing)


def hinge(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Computes SLiC's hinge on implicit rewards, arXiv:2305.10425, with the margin of arXiv:2309.06657:
    ``max(0, 1 - beta (chosen - rejected))``.
    """
    return torch.relu(1 - beta * (chosen_P - rejected_P))


def ipo(
    chosen_P: Tensor, rejected_P: Tensor, chosen_lengths_P: Tensor, rejected_lengths_P: Tensor, *, beta: float
) -> Tensor:
    """Computes IPO, arXiv:2310.12036 (17): ``(chosen - rejected - 1 / (2 beta))^2`` in square nats.

    Log-ratios are divided by their lengths in tokens first, so that beta means the same at every length.
    """
    return (chosen_P / chosen_lengths_P - rejected_P / rejected_lengths_P - 1 / (2 * beta)).square()


def simpo(
    chosen_logps_P: Tensor,
    rejected_logps_P: Tensor,
    chosen_lengths_P: Tensor,
    rejected_lengths_P: Tensor,
    *,
    beta: float,
    target_margin: float,
) -> Tensor:
    """Computes SimPO, arXiv:2405.14734 (6), without a reference: ``-log sigmoid(beta (chosen / length - rejected /
    length) - margin)``.

    Takes log-probabilities of the policy, not log-ratios.
    """
    means_P = chosen_logps_P / chosen_lengths_P - rejected_logps_P / rejected_lengths_P
    return -F.logsigmoid(beta * means_P - target_margin)


def sppo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, soft_labels_P: Tensor | None = None) -> Tensor:
    """Computes self-play preference optimisation, arXiv:2405.00675 (4.7), in square nats.

    ``(chosen - (p - 1/2) / beta)^2 + (rejected - (1/2 - p) / beta)^2``, where p is the probability that the
    chosen answer wins: 1 without soft labels. The paper's step size eta is ``1 / beta``.
    """
    wins_P = 1.0 if soft_labels_P is None else soft_labels_P
    return (chosen_P - (wins_P - 0.5) / beta).square() + (rejected_P - (0.5 - wins_P) / beta).square()


def dpop(
    chosen_P: Tensor, rejected_P: Tensor, *, beta: float, penalty: float, margin_P: Tensor | float = 0.0
) -> Tensor:
    """Computes DPO-Positive, arXiv:2402.13228.

    ``-log sigmoid(beta (chosen - rejected - penalty max(0, -chosen - margin)))``

    The penalty acts if the chosen answer has become less likely than under the reference, by more than the margin in
    nats; the paper has none. An update starts at log-ratios of 0 plus noise, where the penalty's slope jumps: without a
    margin the signs of that noise decide the first step.
    """
    return -F.logsigmoid(beta * (chosen_P - rejected_P - penalty * torch.relu(-chosen_P - margin_P)))


def apo_zero(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Computes APO-zero, arXiv:2408.06266 (7), unitless: ``1 - sigmoid(beta chosen) + sigmoid(beta rejected)``.

    For chosen answers that are better than what the policy writes.
    """
    return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(beta * rejected_P)


def apo_down(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Computes APO-down, arXiv:2408.06266 (8), unitless: ``sigmoid(beta chosen) + 1 - sigmoid(beta (chosen -
    rejected))``.

    For chosen answers that are worse than what the policy writes.
    """
    return torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P - rejected_P))


def exo_pair(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Computes EXO on pairs, arXiv:2402.00856 (16): KL from (q, 1 - q) to (1 - e, e), with ``q = sigmoid(beta (chosen
    - rejected))``.

    The smoothing e must be above 0: at 0 the divergence is infinite.
    """
    margins_P = beta * (chosen_P - rejected_P)
    right_P = torch.sigmoid(margins_P) * (F.logsigmoid(margins_P) - math.log1p(-label_smoothing))
    return right_P + torch.sigmoid(-margins_P) * (F.logsigmoid(-margins_P) - math.log(label_smoothing))


def nca_pair(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Computes noise contrastive alignment on pairs, arXiv:2402.05369:
    ``-log sigmoid(c) - log sigmoid(-c) / 2 - log sigmoid(-r) / 2`` with implicit rewards c and r.
    """
    noise_P = F.logsigmoid(-beta * chosen_P) + F.logsigmoid(-beta * rejected_P)
    return -F.logsigmoid(beta * chosen_P) - noise_P / 2


def bco_pair(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Computes binary classifier optimisation on pairs, arXiv:2404.04656, with no reward shift:
    ``-log sigmoid(beta chosen) - log sigmoid(-beta rejected)``.
    """
    return -F.logsigmoid(beta * chosen_P) - F.logsigmoid(-beta * rejected_P)


def plackett_luce(logratios_P_K: Tensor, ranks_P_K: Tensor, *, beta: float) -> Tensor:
    """Computes Plackett-Luce over rankings, arXiv:2305.18290 (appendix A.3): the sum over places of ``log sum_j
    exp(beta logratio_j) - beta logratio_i``, where j runs over candidate i and all that are ranked below it.

    ``ranks_P_K`` are integers, lower is better; a negative rank marks an entry that is absent. Equal ranks
    are ties: a tie says nothing about the order within it, so each member competes with the strictly worse
    candidates alone. A partial ranking, of which the first m places are known, is one whose others tie for
    the last place. At K = 2 it equals `sigmoid`.
    """
    present = ranks_P_K >= 0
    below = ranks_P_K[:, None, :] > ranks_P_K[:, :, None]
    itself = torch.eye(ranks_P_K.shape[1], dtype=torch.bool, device=ranks_P_K.device)
    rewards_P_K = beta * logratios_P_K
    rivals_P_K_K = rewards_P_K[:, None, :].expand(below.shape).masked_fill(~(below | itself), -torch.inf)
    return ((torch.logsumexp(rivals_P_K_K, dim=-1) - rewards_P_K) * present).sum(-1)


def all_pairs(logratios_P_K: Tensor, ranks_P_K: Tensor, *, beta: float) -> Tensor:
    """Sums `sigmoid` over all pairs of a ranking whose ranks differ. Ranks as in `plackett_luce`."""
    ordered = (ranks_P_K[:, :, None] >= 0) & (ranks_P_K[:, :, None] < ranks_P_K[:, None, :])
    rewards_P_K = beta * logratios_P_K
    margins_P_K_K = rewards_P_K[:, :, None] - rewards_P_K[:, None, :]
    return -(F.logsigmoid(margins_P_K_K) * ordered).sum((1, 2))


def nll(chosen_logps_P: Tensor, chosen_lengths_P: Tensor) -> Tensor:
    """Computes the chosen answer's negative log-likelihood per token, in nats, the term that arXiv:2404.19733 adds."""
    return -chosen_logps_P / chosen_lengths_P


def exploration(logps_P_K: Tensor, ranks_P_K: Tensor) -> Tensor:
    """Computes XPO's optimism, arXiv:2405.21046 (algorithm 1), in nats: the mean log-probability of a prompt's
    candidates, which were sampled from the reference. Added with a small positive weight, it moves mass to
    answers that the reference does not give.
    """
    present = ranks_P_K >= 0
    return (logps_P_K * present).sum(-1) / present.sum(-1)


def wpo_weights(mean_alignments_P_K: Tensor) -> Tensor:
    """Computes weights of pairs by their probability under the policy, arXiv:2406.11827 (2), without gradient:
    ``exp(chosen + rejected)``, where each is the mean over tokens of ``log p(token) - log sum_v p(v)^2``. They are at
    most 1, as in the authors' code: tokens likelier than the distribution's own mean, as in answers of one token, would
    else make a pair count for several.
    """
    return mean_alignments_P_K.detach().sum(-1).exp().clamp(max=1.0)


def importance_weights(logratios_P_K: Tensor, ranks_P_K: Tensor, bound: float) -> Tensor:
    """Computes truncated importance weights, without gradient: ``min(bound, prod_k p(y_k) / q(y_k))`` over the
    candidates of a preference, which are independent samples of q (Ionides 2008, Journal of Computational and Graphical
    Statistics 17(2), 295-311). Takes log-ratios to the policy q that sampled. The bound keeps the variance finite, for
    a bias towards preferences that p makes less likely.
    """
    sums_P = (logratios_P_K.detach() * (ranks_P_K >= 0)).sum(-1)
    return sums_P.clamp(max=math.log(bound)).exp()


def divergence_scores(logratios: Tensor, divergence: str, alpha: float) -> Tensor:
    """Returns log-ratios u as seen by another divergence than the reverse KL, arXiv:2309.16240: ``f'(exp
    u)``, shifted to be 0 if policy and reference are one.

    ``reverse_kl``: u. ``forward_kl``: ``1 - exp(-u)``. ``jensen_shannon``: ``log 2 + log sigmoid(u)``.
    ``alpha``: ``(1 - exp(-alpha u)) / alpha`` for alpha between 0 (reverse KL) and 1 (forward KL).
    """
    if divergence == "forward_kl":
        return -torch.expm1(-logratios)
    if divergence == "jensen_shannon":
        return math.log(2) + F.logsigmoid(logratios)
    if divergence == "alpha":
        return -torch.expm1(-alpha * logratios) / alpha
    return logratios
