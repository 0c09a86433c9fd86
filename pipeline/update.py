"""The DPO update of a round: preferences in, new weights in place, a row of metrics for each optimizer step.

There is no reference model: the reference is given as one log-probability for each candidate. Every token of
a step is processed once, in shared-prefix packs whose gradients add up to that of the step's mean loss.

Axes: ``P`` preferences of a pack or step, ``K`` candidates of a preference, ``S`` candidates of a pack.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from pipeline.attention import shared_prefix_attention
from pipeline.logprobs import check_context, check_model, pack_logps, sequence_logps, sum_by_sequence
from pipeline.losses import Objective, PreferenceBatch, exploration, nll, wpo_weights
from pipeline.optimization import build_optimizer, learning_rate_factor
from pipeline.packing import Pack, pack_groups
from pipeline.update_checks import (
    check_first_loss,
    check_gradient,
    check_inputs,
    check_losses,
    check_weights,
    expected_first_loss,
)
from pipeline.update_types import PreferenceGroup, StepMetrics, UpdateResult, UpdateSettings

__all__ = [
    "PreferenceGroup",
    "StepMetrics",
    "UpdateResult",
    "UpdateSettings",
    "accumulate_gradient",
    "plan_steps",
    "run_update",
    "sequence_logps",
]


@dataclass(frozen=True)
class StepOutcome:
    """Detached values of a step's preferences, each of shape ``[P]``."""

    objective: Tensor
    loss: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_ratio: Tensor
    rejected_ratio: Tensor
    drift: Tensor


def run_update(
    model: Any,
    groups: Sequence[PreferenceGroup],
    settings: UpdateSettings,
    *,
    seed: int,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> UpdateResult:
    """Train ``model`` in place on ``groups``. The same inputs, seed and thread count give the same weights to
    the bit on CPU.

    Raises:
        ConfigError, DataError, PromptTooLongError, UnsupportedModelError: before the first step.
        FirstLossError: the first loss is not the one that theory gives; no weight has changed.
        NonFiniteError: a loss or a gradient is not finite; the step at fault has not been taken.
    """
    terms = check_inputs(groups, settings)
    check_weights(model)
    check_model(model)
    check_context(model, groups)
    _prepare(model, gradient_checkpointing=settings.gradient_checkpointing)
    optimizer = build_optimizer(model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    plan = plan_steps(len(groups), batch_size=settings.batch_size, epochs=settings.epochs, seed=seed)
    factor = learning_rate_factor(settings.schedule, steps=len(plan), warmup_steps=settings.warmup_steps)
    first_batch = [groups[index] for index in plan[0][1]]
    expected = expected_first_loss(first_batch, terms, settings)
    first_loss = drift = 0.0
    rows: list[StepMetrics] = []
    for step, (epoch, members) in enumerate(plan):
        started = time.perf_counter()
        batch = [groups[index] for index in members]
        optimizer.zero_grad(set_to_none=True)
        with shared_prefix_attention(model):  # around the backward pass too, which may recompute layers
            outcome, tokens = accumulate_gradient(model, batch, terms, settings, step)
        if step == 0:
            first_loss, drift = outcome.objective.mean().item(), outcome.drift.max().item()
            check_first_loss(first_loss, expected, drift=drift, tolerance=settings.first_loss_tolerance)
        learning_rate = settings.learning_rate * factor(step)
        grad_norm = _take_step(model, optimizer, learning_rate, settings.max_grad_norm, batch, step)
        row = StepMetrics(
            step=step,
            epoch=epoch,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens=tokens,
            seconds=time.perf_counter() - started,
            **_means(outcome, settings.constants.beta),
        )
        rows.append(row)
        if on_step is not None:
            on_step(row)
    final = sequence_logps(model, groups, settings.token_budget, precision=settings.precision)
    return UpdateResult(
        first_loss=first_loss,
        first_loss_expected=expected,
        reference_drift=drift,
        steps=rows,
        final_logps=final,
        **_displacement(groups, final),
    )


def plan_steps(preferences: int, *, batch_size: int, epochs: int, seed: int) -> list[tuple[int, list[int]]]:
    """Epoch and members of each optimizer step. Each epoch is a fresh permutation; its last step may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    steps: list[tuple[int, list[int]]] = []
    for epoch in range(epochs):
        order = torch.randperm(preferences, generator=generator).tolist()
        steps += [(epoch, order[start : start + batch_size]) for start in range(0, preferences, batch_size)]
    return steps


def _prepare(model: Any, *, gradient_checkpointing: bool) -> None:
    """Evaluation mode, as dropout would make the policy differ from the reference.

    Checkpointing asks for training mode of the layer itself; its parts, where dropout is, stay in evaluation
    mode.
    """
    model.eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True


def accumulate_gradient(
    model: Any,
    batch: Sequence[PreferenceGroup],
    terms: Sequence[tuple[Objective, float]],
    settings: UpdateSettings,
    step: int,
) -> tuple[StepOutcome, int]:
    """Add the gradient of the step's mean loss, pack by pack, and count the tokens.

    The denominator is the number of preferences of the step, however they are spread over packs.
    """
    parts: list[StepOutcome] = []
    tokens = 0
    for pack in pack_groups(batch, settings.token_budget):
        members = [batch[index] for index in pack.groups]
        logps_N, squares_N = pack_logps(model, pack, squares=settings.wpo, precision=settings.precision)
        preferences = _preference_batch(pack, members, sum_by_sequence(logps_N, pack))
        objective_P = torch.zeros_like(preferences.logps_P_K[:, 0])
        for objective, weight in terms:
            objective_P = objective_P + weight * objective.loss(preferences, settings.constants)
        loss_P = objective_P
        if squares_N is not None:
            aligned_P_K = sum_by_sequence(logps_N.detach() - squares_N, pack).view_as(preferences.lengths_P_K)
            loss_P = loss_P * wpo_weights(aligned_P_K / preferences.lengths_P_K)
        loss_P = loss_P + _extra_terms(preferences, settings)
        check_losses(loss_P, preferences, members, step)
        (loss_P.sum() / len(batch)).backward()
        parts.append(_outcome(objective_P, loss_P, preferences))
        tokens += len(pack.input_ids_T)
    names = [column.name for column in fields(StepOutcome)]
    return StepOutcome(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names}), tokens


def _extra_terms(preferences: PreferenceBatch, settings: UpdateSettings) -> Tensor | float:
    """What is added to the objective; not part of the first loss that theory gives."""
    extra: Tensor | float = 0.0
    if settings.nll_weight:
        chosen_nll_P = nll(preferences.logps_P_K[:, 0], preferences.lengths_P_K[:, 0])
        extra = extra + settings.nll_weight * chosen_nll_P
    if settings.exploration_weight:
        optimism_P = exploration(preferences.logps_P_K, preferences.ranks_P_K)
        extra = extra + settings.exploration_weight * optimism_P
    return extra


def _preference_batch(pack: Pack, members: Sequence[PreferenceGroup], logps_S: Tensor) -> PreferenceBatch:
    """Arrange a pack's candidates as [P, K]; places that a preference lacks have rank -1 and repeat its first
    candidate.
    """
    widest = max(pack.candidates)
    index, reference, lengths, ranks = [], [], [], []
    start = 0
    for group, candidates in zip(members, pack.candidates, strict=True):
        missing = widest - candidates
        index.append([*range(start, start + candidates), *[start] * missing])
        reference.append([*group.reference_logps, *[group.reference_logps[0]] * missing])
        lengths.append([*map(len, group.candidate_token_ids), *[1] * missing])
        ranks.append([*group.places, *[-1] * missing])
        start += candidates
    labels = [1.0 if group.soft_label is None else group.soft_label for group in members]
    device, dtype = logps_S.device, logps_S.dtype
    return PreferenceBatch(
        logps_P_K=logps_S[torch.tensor(index, device=device)],
        reference_logps_P_K=torch.tensor(reference, device=device, dtype=dtype),
        lengths_P_K=torch.tensor(lengths, device=device, dtype=dtype),
        ranks_P_K=torch.tensor(ranks, device=device),
        soft_labels_P=torch.tensor(labels, device=device, dtype=dtype),
    )


def _outcome(objective_P: Tensor, loss_P: Tensor, preferences: PreferenceBatch) -> StepOutcome:
    worst = preferences.ranks_P_K.argmax(dim=1, keepdim=True)
    logps = preferences.logps_P_K.detach()
    ratios = preferences.logratios_P_K.detach()
    return StepOutcome(
        objective=objective_P.detach(),
        loss=loss_P.detach(),
        chosen=logps[:, 0],
        rejected=logps.gather(1, worst)[:, 0],
        chosen_ratio=ratios[:, 0],
        rejected_ratio=ratios.gather(1, worst)[:, 0],
        drift=ratios.abs().amax(dim=1),
    )


def _take_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    max_norm: float,
    batch: Sequence[PreferenceGroup],
    step: int,
) -> float:
    """Clip the gradient, let the optimizer step, and return the norm before clipping."""
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    check_gradient(norm, model, batch, step)
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return float(norm)


def _means(outcome: StepOutcome, beta: float) -> dict[str, float]:
    margin = outcome.chosen_ratio - outcome.rejected_ratio
    chosen, rejected = outcome.chosen_ratio.mean().item(), outcome.rejected_ratio.mean().item()
    return {
        "loss": outcome.loss.mean().item(),
        "reward_chosen": beta * chosen,
        "reward_rejected": beta * rejected,
        "reward_margin": beta * margin.mean().item(),
        "accuracy": (margin > 0).double().mean().item(),
        "logp_chosen": outcome.chosen.mean().item(),
        "logp_rejected": outcome.rejected.mean().item(),
        "logp_chosen_change": chosen,
        "logp_rejected_change": rejected,
    }


def _displacement(groups: Sequence[PreferenceGroup], final: list[list[float]]) -> dict[str, float]:
    pairs = list(zip(groups, final, strict=True))
    chosen = [logps[0] - group.reference_logps[0] for group, logps in pairs]
    worst = [group.places.index(max(group.places)) for group in groups]
    rejected = [logps[k] - group.reference_logps[k] for (group, logps), k in zip(pairs, worst, strict=True)]
    return {
        "chosen_fell_share": fmean(change < 0 for change in chosen),
        "chosen_change": fmean(chosen),
        "rejected_change": fmean(rejected),
    }
