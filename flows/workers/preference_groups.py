"""From the tables and the recipe of a round to the arguments of its update, and back to its metrics."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import UpdateConfig
from pipeline.dpo.measured_sample import affordable
from pipeline.dpo.types import PreferenceGroup, UpdateResult
from pipeline.errors import WeightSyncError
from pipeline.model.logprobs import sequence_logps

LEAST_COMPARED = 2
"""Preferences on which the engines are compared; the weight sync has compared them on a few sequences more."""


def prompt_token_ids(prompts: pa.Table, wanted: Iterable[str]) -> dict[str, list[int]]:
    """Returns the token ids of these prompts, by their ids."""
    found = prompts.filter(pc.is_in(prompts["prompt_id"], pa.array(list(set(wanted)), pa.string())))
    return dict(zip(found["prompt_id"].to_pylist(), found["token_ids"].to_pylist(), strict=True))


def preference_groups(prompts: pa.Table, candidates: pa.Table, preferences: pa.Table) -> list[PreferenceGroup]:
    """Returns preferences, but for dropped prompts, with token ids of prompts and candidates exactly as sampled."""
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
    """Returns preferences of earlier rounds, with the log-probabilities under the policies that sampled them."""
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
    model: Any,
    groups: Sequence[PreferenceGroup],
    config: UpdateConfig,
    drift: float,
    tolerance: float,
    explain: Callable[[float], str] = lambda _per_token: "",
    expected: int = 0,
) -> tuple[list[PreferenceGroup], dict[str, Any]]:
    """Returns the groups with the reference's log-probabilities by the engine that the recipe asks for.

    ``auto`` compares the two engines on some preferences: no more than a step has, and than take 3% of the steps' time.
    It takes the sampler's if all sequences, here and at the weight sync, agree within ``reference_tolerance`` nats.

    Args:
        tolerance: how far the two may be apart on average, in nats per token, if they hold the same policy.
        explain: what more to say of a difference, in nats per token, that is too large.
        expected: preferences of the round, of which these may be a part.

    Returns:
        The groups, and for the record which engine it is and how far the two were apart, in nats per sequence.

    Raises:
        WeightSyncError: they are further apart: the update would not start from the policy that sampled.
    """
    if config.reference_logprobs == "sampler":
        return list(groups), {"reference_logprobs": "sampler", "reference_drift": drift}
    most = affordable(expected or len(groups), config.epochs, least=LEAST_COMPARED, most=config.batch_size)
    compared = groups[:most]
    scored = sequence_logps(model, compared, config.token_budget, precision=config.precision)
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
            f"it is not the policy that sampled{explain(per_token)}"
        )
    drift = max(drift, *gaps)
    if config.takes_samplers(drift):
        return list(groups), {"reference_logprobs": "sampler", "reference_drift": drift}
    scored += sequence_logps(model, groups[most:], config.token_budget, precision=config.precision)
    exact = [replace(group, reference_logps=logps) for group, logps in zip(groups, scored, strict=True)]
    return exact, {"reference_logprobs": "trainer", "reference_drift": drift}


def with_other_reference(
    model: Any, groups: Sequence[PreferenceGroup], config: UpdateConfig
) -> tuple[list[PreferenceGroup], dict[str, Any]]:
    """Returns the groups with the log-probabilities of a model whose weights are not the sampler's."""
    scored = sequence_logps(model, groups, config.token_budget, precision=config.precision)
    exact = [replace(group, reference_logps=logps) for group, logps in zip(groups, scored, strict=True)]
    return exact, {"reference_logprobs": "trainer", "reference_drift": None}


def off_policy(groups: Sequence[PreferenceGroup], logps: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Returns the mean, and its standard error, of ``log p - log p_reference`` in nats per completion.

    The mean is over preferences, of the mean over their completions: these share a prompt, and preferences are what is
    independent of each other.

    Args:
        logps: of each group's completions, under the policy p.
    """
    if not groups:
        return {}
    found = [
        fmean(ours - theirs for ours, theirs in zip(own, group.reference_logps, strict=True))
        for group, own in zip(groups, logps, strict=True)
    ]
    error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return {"off_policy": fmean(found), "off_policy_se": error}


def summary(result: UpdateResult, config: UpdateConfig) -> dict[str, Any]:
    """Returns what the round's table and report keep of an update."""
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
        "chosen_measured": len(result.sample),
        "chosen_change": result.chosen_change,
        "rejected_change": result.rejected_change,
    }
