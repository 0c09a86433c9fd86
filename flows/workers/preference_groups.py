"""From the tables and the recipe of a round to the arguments of its update, and back to its metrics."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import UpdateConfig
from pipeline.dpo.losses import ObjectiveSettings
from pipeline.dpo.types import PreferenceGroup, UpdateResult, UpdateSettings
from pipeline.errors import WeightSyncError
from pipeline.model.logprobs import sequence_logps


def prompt_token_ids(prompts: pa.Table, wanted: Iterable[str]) -> dict[str, list[int]]:
    """Token ids of these prompts, by their ids."""
    found = prompts.filter(pc.is_in(prompts["prompt_id"], pa.array(list(set(wanted)), pa.string())))
    return dict(zip(found["prompt_id"].to_pylist(), found["token_ids"].to_pylist(), strict=True))


def preference_groups(prompts: pa.Table, candidates: pa.Table, preferences: pa.Table) -> list[PreferenceGroup]:
    """Preferences, but for dropped prompts, with the token ids of their prompts and candidates, exactly as sampled."""
    rows = preferences.filter(pc.field("kind") != "dropped").to_pylist()
    prompt_ids = prompt_token_ids(prompts, (row["prompt_id"] for row in rows))
    sampled = candidates.filter(pc.is_in(candidates["prompt_id"], pa.array(list(prompt_ids), pa.string())))
    keys = zip(sampled["prompt_id"].to_pylist(), sampled["candidate"].to_pylist(), strict=True)
    token_ids = dict(zip(keys, sampled["token_ids"].to_pylist(), strict=True))
    return [
        PreferenceGroup(
            prompt_id=row["prompt_id"],
            prompt_token_ids=prompt_ids[row["prompt_id"]],
            candidate_token_ids=[token_ids[row["prompt_id"], index] for index in row["candidates"]],
            reference_logps=row["reference_logps"],
            ranks=row.get("ranks"),  # tables of version 1 have none
            soft_label=row["soft_label"],
        )
        for row in rows
    ]


def replayed_groups(prompts: pa.Table, replayed: pa.Table | None) -> list[PreferenceGroup]:
    """Preferences of earlier rounds, with the log-probabilities under the policies that sampled them."""
    rows = [] if replayed is None else replayed.to_pylist()
    prompt_ids = prompt_token_ids(prompts, (row["prompt_id"] for row in rows))
    return [
        PreferenceGroup(
            prompt_id=row["prompt_id"],
            prompt_token_ids=prompt_ids[row["prompt_id"]],
            candidate_token_ids=row["token_ids"],
            reference_logps=row["reference_logps"],
            ranks=row["ranks"],
            soft_label=row["soft_label"],
        )
        for row in rows
    ]


def with_reference(
    model: Any, groups: Sequence[PreferenceGroup], config: UpdateConfig, drift: float, tolerance: float
) -> tuple[list[PreferenceGroup], dict[str, Any]]:
    """The groups with the reference's log-probabilities by the engine that the recipe asks for.

    ``auto`` compares the two engines on the first step's worth of preferences, and takes the sampler's where no
    sequence, here or at the hand-over, differs by more than ``reference_tolerance`` nats.

    Args:
        tolerance: how far the two may be apart on average, in nats per token, if they hold the same policy.

    Returns:
        The groups, and for the record which engine it is and how far the two were apart, in nats per sequence.

    Raises:
        WeightSyncError: they are further apart: the update would not start from the policy that sampled.
    """
    if config.reference_logprobs == "sampler":
        return list(groups), {"reference_logprobs": "sampler", "reference_drift": drift}
    scored = sequence_logps(model, groups[: config.batch_size], config.token_budget, precision=config.precision)
    compared = groups[: config.batch_size]
    gaps = [
        abs(sampled - trained)
        for group, logps in zip(compared, scored, strict=True)
        for sampled, trained in zip(group.reference_logps, logps, strict=True)
    ]
    per_token = sum(gaps) / sum(len(answer) for group in compared for answer in group.candidate_token_ids)
    if not per_token <= tolerance:
        raise WeightSyncError(
            "the policy that the update starts from gives the sampled answers log-probabilities that differ from the "
            f"sampler's by {per_token:.3g} nats per token, more than sampling.handover_tolerance {tolerance:g}: "
            "it is not the policy that sampled"
        )
    drift = max(drift, *gaps)
    if config.reference_logprobs == "auto" and drift <= config.reference_tolerance:
        return list(groups), {"reference_logprobs": "sampler", "reference_drift": drift}
    scored += sequence_logps(model, groups[config.batch_size :], config.token_budget, precision=config.precision)
    exact = [replace(group, reference_logps=logps) for group, logps in zip(groups, scored, strict=True)]
    return exact, {"reference_logprobs": "trainer", "reference_drift": drift}


def with_other_reference(
    model: Any, groups: Sequence[PreferenceGroup], config: UpdateConfig
) -> tuple[list[PreferenceGroup], dict[str, Any]]:
    """The groups with the log-probabilities of a model that holds the weights of another policy than the sampler's."""
    scored = sequence_logps(model, groups, config.token_budget, precision=config.precision)
    exact = [replace(group, reference_logps=logps) for group, logps in zip(groups, scored, strict=True)]
    return exact, {"reference_logprobs": "trainer", "reference_drift": None}


def update_settings(config: UpdateConfig, round: int, rounds: int, *, reference_is_start: bool) -> UpdateSettings:
    """The recipe's update as it is in one of the run's rounds."""
    over_run = config.schedule_over == "run"
    return UpdateSettings(
        objectives=config.objective,
        constants=ObjectiveSettings(
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            target_margin=config.target_margin,
            dpop_penalty=config.dpop_penalty,
            divergence=config.divergence,
            divergence_alpha=config.divergence_alpha,
        ),
        nll_weight=config.nll_weight,
        exploration_weight=config.exploration_weight,
        router_loss_weight=config.router_loss_weight,
        wpo=config.wpo,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        schedule_start=(round - 1) / rounds if over_run else 0.0,
        schedule_end=round / rounds if over_run else 1.0,
        warmup_steps=config.warmup_steps,
        optimizer=config.optimizer,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        epochs=config.epochs,
        batch_size=config.batch_size,
        batch_order=config.batch_order,
        token_budget=config.token_budget,
        precision=config.precision,
        gradient_checkpointing=config.gradient_checkpointing,
        reference_is_start=reference_is_start,
        stop_at_kl=config.stop_at_kl,
        stop_at_margin=config.stop_at_margin,
    )


def summary(result: UpdateResult, config: UpdateConfig) -> dict[str, Any]:
    """What the round's table and report keep of an update."""
    first, last = result.steps[0], result.steps[-1]
    router = {"router_loss_weight": config.router_loss_weight, "last_router_loss": last.router_loss}
    return {
        **(router if config.router_loss_weight else {}),
        "first_loss": result.first_loss,
        "first_kl": first.kl,
        "first_loss_expected": result.first_loss_expected,
        "last_loss": last.loss,
        "steps": len(result.steps),
        "stopped": result.stopped,
        "token_budget": result.token_budget,
        "last_kl": last.kl,
        "seconds": sum(step.seconds for step in result.steps),
        "train_tokens": sum(step.tokens for step in result.steps),
        "train_accuracy": last.accuracy,
        "chosen_fell": result.chosen_fell_share,
        "chosen_change": result.chosen_change,
        "rejected_change": result.rejected_change,
    }
