"""The objective of preferences, from the log-probabilities of their candidates: in a step, and beside it.

Axes: ``P`` preferences, ``K`` candidates of a preference, ``S`` candidates of all of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.config import UpdateConfig
from pipeline.dpo.loss_table import Loss, PreferenceBatch
from pipeline.dpo.types import PreferenceGroup

Terms = Sequence[tuple[Loss, float]]
"""The formulas of a recipe's objective, each with its weight."""


def preference_batch(members: Sequence[PreferenceGroup], logps_S: Tensor) -> PreferenceBatch:
    """Arranges the candidates of preferences as [P, K]; see ``reference_batch``."""
    counts = [len(group.candidate_token_ids) for group in members]
    index, start = [], 0
    for candidates in counts:
        index.append([*range(start, start + candidates), *[start] * (max(counts) - candidates)])
        start += candidates
    batch = reference_batch(members, device=logps_S.device, dtype=logps_S.dtype)
    return replace(batch, logps_P_K=logps_S[torch.tensor(index, device=logps_S.device)])


def reference_batch(members: Sequence[PreferenceGroup], *, device: torch.device, dtype: torch.dtype) -> PreferenceBatch:
    """Arranges preferences as [P, K], under a policy that is the reference.

    Places that a preference lacks have rank -1 and repeat its first candidate.
    """
    widest = max(len(group.candidate_token_ids) for group in members)
    reference, lengths, ranks = [], [], []
    for group in members:
        missing = widest - len(group.candidate_token_ids)
        reference.append([*group.reference_logps, *[group.reference_logps[0]] * missing])
        lengths.append([*map(len, group.candidate_token_ids), *[1] * missing])
        ranks.append([*group.places, *[-1] * missing])
    labels = [1.0 if group.soft_label is None else group.soft_label for group in members]
    reference_P_K = torch.tensor(reference, device=device, dtype=dtype)
    return PreferenceBatch(
        logps_P_K=reference_P_K,
        reference_logps_P_K=reference_P_K,
        lengths_P_K=torch.tensor(lengths, device=device, dtype=dtype),
        ranks_P_K=torch.tensor(ranks, device=device),
        soft_labels_P=torch.tensor(labels, device=device, dtype=dtype),
    )


def objective(preferences: PreferenceBatch, terms: Terms, config: UpdateConfig) -> Tensor:
    """Computes the recipe's objective of each preference, shape ``[P]``, without what is added to it or weighs it."""
    objective_P = torch.zeros_like(preferences.logps_P_K[:, 0])
    for loss, weight in terms:
        objective_P = objective_P + weight * loss.function(preferences, config)
    return objective_P


def preference_losses(
    groups: Sequence[PreferenceGroup], logps: Sequence[Sequence[float]], terms: Terms, config: UpdateConfig
) -> list[float]:
    """Computes `objective` of preferences whose candidates have these log-probabilities, in nats, in float64."""
    logps_S = torch.tensor([logp for found in logps for logp in found], dtype=torch.float64)
    losses: list[float] = objective(preference_batch(groups, logps_S), terms, config).tolist()
    return losses
