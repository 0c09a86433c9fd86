"""The guards of an update: before it starts, at its first loss, and before each optimizer step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config import OBJECTIVES, UpdateConfig
from pipeline.dpo.loss_table import LOSSES, Loss, PreferenceBatch
from pipeline.dpo.types import PreferenceGroup
from pipeline.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from pipeline.model.distributed import local, world_of
from pipeline.packing.packing import check_budget

NAMED = 8
"""Prompts or weights that a message names at most."""


def check_inputs(groups: Sequence[PreferenceGroup], config: UpdateConfig) -> list[tuple[Loss, float]]:
    """Checks that configuration and preferences go together, and returns the objectives' losses with their weights.

    Raises:
        ConfigError, DataError, PromptTooLongError: they do not.
    """
    check_budget(groups, config.token_budget)
    if config.wpo and any(len(group.candidate_token_ids) > 2 for group in groups):
        raise ConfigError("wpo weighs pairs, and some preferences are rankings: leave wpo out, or make pairs")
    for name in config.objective:
        _check_fit(name, groups)
    return [(LOSSES[name], weight) for name, weight in config.objective.items()]


def check_any(groups: Sequence[PreferenceGroup]) -> None:
    """Raises DataError if there is nothing to learn from."""
    if not groups:
        raise DataError("an update needs at least one preference and got none: every prompt of the round was dropped")


def _check_fit(name: str, groups: Sequence[PreferenceGroup]) -> None:
    objective = OBJECTIVES[name]
    for group in groups:
        candidates = len(group.candidate_token_ids)
        if candidates > 2 and not objective.rankings:
            raise DataError(
                f"objective '{name}' compares two candidates and prompt {group.prompt_id} has {candidates}: "
                "make pairs, or use plackett_luce or all_pairs"
            )
        if group.soft_label is not None and not objective.soft:
            raise DataError(
                f"objective '{name}' has no soft labels and prompt {group.prompt_id} has {group.soft_label}: "
                "leave soft labels out, or use sigmoid, sigmoid_norm or sppo"
            )


def check_weights(model: Any) -> None:
    """Refuses weights that are not finite, and trained ones in half precision: small steps would round to nothing."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(local(weight)).all():
            raise NonFiniteError(f"weight {name} is not finite before the first step: take an earlier checkpoint")
        if weight.requires_grad and weight.dtype not in (torch.float32, torch.float64):
            raise UnsupportedModelError(
                f"weight {name} is {weight.dtype} and the update trains float32 master weights: load the "
                'model with dtype="float32"; precision "bfloat16" still runs the forward pass in half'
            )


def check_losses(loss_P: Tensor, preferences: PreferenceBatch, members: Sequence[PreferenceGroup], step: int) -> None:
    """Raises NonFiniteError, naming the prompts, if a loss is not finite."""
    finite = torch.isfinite(loss_P)
    if finite.all():
        return
    rows = torch.nonzero(~finite)[:NAMED, 0].tolist()
    named = ", ".join(
        f"{members[row].prompt_id} (log-probabilities {preferences.logps_P_K[row].tolist()})" for row in rows
    )
    raise NonFiniteError(
        f"the loss of step {step} is not finite for {int((~finite).sum())} preferences: {named}; the step "
        "was not taken. Look for weights that are not finite, or a learning rate that is too high"
    )


def check_gradient(norm: Tensor, model: Any, batch: Sequence[PreferenceGroup], step: int) -> None:
    """Raises NonFiniteError, naming weights and prompts, if the gradient's norm is not finite."""
    if torch.isfinite(norm):
        return
    largest = _largest_entries(model)
    worst = sorted(largest, key=lambda name: largest[name] if math.isfinite(largest[name]) else math.inf)
    raise NonFiniteError(
        f"the gradient of step {step} is not finite, largest entries: "
        f"{', '.join(f'{name} {largest[name]:.3g}' for name in worst[::-1][:NAMED])}; first prompts of the "
        f"step: {', '.join(group.prompt_id for group in batch[:NAMED])}; the step was not taken. Lower the "
        "learning rate or beta"
    )


def _largest_entries(model: Any) -> dict[str, float]:
    """Finds the largest absolute gradient of each weight, over all ranks; what is not a number counts as largest."""
    gradients = {name: local(weight.grad) for name, weight in model.named_parameters() if weight.grad is not None}
    world = world_of(model)
    # One row a rank, as not every sum or maximum over ranks keeps what is not a number.
    entries_R_W = torch.zeros(world.size, len(gradients), device=next(iter(gradients.values())).device)
    for place, gradient in enumerate(gradients.values()):
        if gradient.numel():
            entries_R_W[world.rank, place] = gradient.abs().max()
    return dict(zip(gradients, world.sum(entries_R_W).amax(dim=0).tolist(), strict=True))


def check_alone(ranks: int, token_budget: int, reason: str) -> None:
    """Raises OutOfMemoryError if there are other ranks, which wait for this one in the middle of the pass.

    A single rank takes the step again with smaller packs.
    """
    if ranks > 1:
        raise OutOfMemoryError(
            f"the memory of one of {ranks} devices does not hold a pack of {token_budget} tokens ({reason}): set "
            f"update.token_budget to {token_budget // 2}, or turn on update.gradient_checkpointing"
        )


def halved_budget(groups: Sequence[PreferenceGroup], token_budget: int, reason: str) -> int:
    """Halves the token budget, but not below what the largest preference takes alone.

    Raises:
        OutOfMemoryError: it was no more than that already.
    """
    largest = max(groups, key=lambda group: group.packed_tokens)
    if token_budget <= largest.packed_tokens:
        raise OutOfMemoryError(
            f"the device's memory does not hold prompt {largest.prompt_id} with its candidates, "
            f"{largest.packed_tokens} tokens ({reason}): turn on update.gradient_checkpointing, take fewer or shorter "
            "candidates, or use lora or a larger device"
        )
    return max(token_budget // 2, largest.packed_tokens)
