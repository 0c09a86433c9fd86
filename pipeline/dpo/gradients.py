"""The gradient of one optimizer step: shared-prefix packs whose gradients add up to that of the step's mean loss.

Every token of a step is processed once. There is no reference model: the reference is given as one
log-probability for each candidate.

Axes: ``P`` preferences of a pack or step, ``K`` candidates of a preference, ``S`` candidates of a pack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipeline.config import UpdateConfig
from pipeline.dpo.checks import check_losses
from pipeline.dpo.loss_table import PreferenceBatch
from pipeline.dpo.losses import exploration, importance_weights, nll, wpo_weights
from pipeline.dpo.preference_losses import Terms, objective, preference_batch
from pipeline.dpo.types import PreferenceGroup
from pipeline.model.distributed import World, own_packs, world_of
from pipeline.model.logprobs import pack_logps, sum_by_sequence
from pipeline.model.model_config import length_boundaries
from pipeline.model.router_loss import keep_router_logits, router_losses
from pipeline.packing.packing import Pack


@dataclass(frozen=True)
class StepOutcome:
    """Detached values of a step's preferences, each of shape ``[P]``.

    ``drift`` is the largest difference to the reference over a preference's candidates, in nats. ``kl`` is half the
    mean of its square: a second-order estimate of the divergence from the reference (k2 of
    http://joschu.net/blog/kl-approx.html). Unlike an exponential of the difference it has no heavy tail. ``router`` is
    the balancing loss of a mixture of experts, 0 if none is asked for.
    """

    objective: Tensor
    loss: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_ratio: Tensor
    rejected_ratio: Tensor
    drift: Tensor
    kl: Tensor
    router: Tensor


NOBODY = PreferenceGroup(
    prompt_id="(none)", prompt_token_ids=[0], candidate_token_ids=[[0], [0]], reference_logps=[0.0, 0.0]
)
"""What a pack of no group computes; it has no weight in the loss."""


def accumulate_gradient(
    model: Any,
    batch: Sequence[PreferenceGroup],
    terms: Terms,
    config: UpdateConfig,
    step: int,
) -> tuple[StepOutcome, int]:
    """Adds the gradient of the step's mean loss, pack by pack, and counts the tokens.

    The denominator is the number of preferences of the step, however they are spread over packs and ranks. Outcome and
    tokens are those of the whole step on every rank.

    Raises:
        NonFiniteError: a loss is not finite, on whichever rank.
    """
    world = world_of(model)
    packs = own_packs(batch, config.token_budget, world, length_boundaries(model.config))
    parts: list[StepOutcome] = []
    for pack in packs:
        members = [batch[index] for index in pack.groups] or [NOBODY]
        objective_P, loss_P, router_P, preferences = _losses(model, pack, members, terms, config)
        with world.raise_on_all():
            check_losses(loss_P, preferences, members, step)
        share = loss_P.sum() / len(batch)
        (share if pack.groups else 0 * share).backward()
        parts.append(_outcome(objective_P, loss_P, router_P, preferences))
    names = [column.name for column in fields(StepOutcome)]
    found = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    if world.size > 1:
        found = _of_all_ranks(found, [pack.groups for pack in packs], len(batch), world)
    return StepOutcome(**found), sum(group.packed_tokens for group in batch)


def _losses(
    model: Any,
    pack: Pack,
    members: Sequence[PreferenceGroup],
    terms: Terms,
    config: UpdateConfig,
) -> tuple[Tensor, Tensor, Tensor, PreferenceBatch]:
    """Computes objective, loss and balancing loss of each preference of a pack; returns them with that batch."""
    with keep_router_logits(model, wanted=config.router_loss_weight > 0) as router_logits:
        logps_N, squares_N = pack_logps(model, pack, squares=config.wpo, precision=config.precision)
    preferences = preference_batch(members, sum_by_sequence(logps_N, pack))
    loss_P = objective_P = objective(preferences, terms, config)
    if squares_N is not None:
        aligned_P_K = sum_by_sequence(logps_N.detach() - squares_N, pack).view_as(preferences.lengths_P_K)
        loss_P = loss_P * wpo_weights(aligned_P_K / preferences.lengths_P_K)
    if config.importance == "clipped":
        weights_P = importance_weights(preferences.logratios_P_K, preferences.ranks_P_K, config.importance_bound)
        loss_P = loss_P * weights_P
    loss_P, router_P = loss_P + _extra_terms(preferences, config), torch.zeros_like(objective_P)
    if router_logits:
        router_P = router_losses(model, router_logits, pack)
        loss_P = loss_P + config.router_loss_weight * router_P
    return objective_P, loss_P, router_P, preferences


def _of_all_ranks(
    found: dict[str, Tensor], packs: Sequence[Sequence[int]], preferences: int, world: World
) -> dict[str, Tensor]:
    """Collects the columns of all ranks, in the order of the step; a pack of no group has a row, which is left out."""
    own = torch.tensor([bool(groups) for groups in packs for _ in groups or [0]], device=world.device)
    rows = torch.tensor([index for groups in packs for index in groups], dtype=torch.int64, device=world.device)
    values = torch.zeros(len(found), preferences, dtype=torch.float64, device=world.device)
    values[:, rows] = torch.stack(list(found.values()))[:, own].double()
    return dict(zip(found, world.sum(values), strict=True))


def _extra_terms(preferences: PreferenceBatch, config: UpdateConfig) -> Tensor | float:
    """Computes what is added to the objective; it is no part of the first loss that theory gives."""
    extra: Tensor | float = 0.0
    if config.nll_weight:
        chosen_nll_P = nll(preferences.logps_P_K[:, 0], preferences.lengths_P_K[:, 0])
        extra = extra + config.nll_weight * chosen_nll_P
    if config.exploration_weight:
        optimism_P = exploration(preferences.logps_P_K, preferences.ranks_P_K)
        extra = extra + config.exploration_weight * optimism_P
    return extra


def _outcome(objective_P: Tensor, loss_P: Tensor, router_P: Tensor, preferences: PreferenceBatch) -> StepOutcome:
    worst = preferences.ranks_P_K.argmax(dim=1, keepdim=True)
    logps = preferences.logps_P_K.detach()
    ratios = preferences.logratios_P_K.detach()
    present = preferences.ranks_P_K >= 0
    return StepOutcome(
        objective=objective_P.detach(),
        loss=loss_P.detach(),
        chosen=logps[:, 0],
        rejected=logps.gather(1, worst)[:, 0],
        chosen_ratio=ratios[:, 0],
        rejected_ratio=ratios.gather(1, worst)[:, 0],
        drift=ratios.abs().amax(dim=1),
        kl=(ratios.square() * present).sum(dim=1) / present.sum(dim=1) / 2,
        router=router_P.detach(),
    )
