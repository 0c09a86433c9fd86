"""From the tables and the recipe of a round to the arguments of its update, and back to its metrics."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import UpdateConfig
from pipeline.dpo.measured_sample import affordable
from pipeline.dpo.noise import BFLOAT16_NOISE
from pipeline.dpo.types import PreferenceGroup, UpdateResult
from pipeline.errors import WeightSyncError
from pipeline.model.logprobs import sequence_logps

DEVIATIONS = 4
"""Standard deviations that a sequence may be off by before the difference is taken for more than noise."""
MOST_NOISE = 2 * BFLOAT16_NOISE
"""Largest standard deviation of a token, in nats, that is taken for bfloat16's."""
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
            candidates=row["candidates"],
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
            candidates=row["candidates"],
            origin_round=row["origin_round"],
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
    noise: float = 0.0,
) -> tuple[list[PreferenceGroup], dict[str, Any]]:
    """Returns the groups with the reference's log-probabilities by the engine that the recipe asks for.

    ``auto`` compares the two engines on some preferences: no more than a step has, and than take 3% of the steps' time.
    It takes the sampler's if all sequences, here and at the weight sync, agree within ``reference_tolerance`` nats. If
    noise is expected, as in bfloat16, it takes them if all are within what that adds up to over a completion.

    Args:
        tolerance: how far the two may be apart on average, in nats per token, if they hold the same policy.
        explain: what more to say of a difference, in nats per token, that is too large.
        expected: preferences of the round, of which these may be a part.
        noise: standard deviation of a token's difference that is expected, in nats; 0 if both compute in float32.

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
    lengths = [len(answer) for group in compared for answer in group.candidate_token_ids]
    per_token = sum(gaps) / sum(lengths)
    if not per_token <= tolerance:
        raise WeightSyncError(
            "the policy that the update starts from gives the sampled answers log-probabilities that differ from the "
            f"sampler's by {per_token:.3g} nats per token, more than sampling.handover_tolerance {tolerance:g}: "
            f"it is not the policy that sampled{explain(per_token)}"
        )
    drift = max(drift, *gaps)
    if config.takes_samplers(drift) or (config.reference_logprobs == "auto" and is_noise(gaps, lengths, noise)):
        return list(groups), {"reference_logprobs": "sampler", "reference_drift": drift}
    scored += sequence_logps(model, groups[most:], config.token_budget, precision=config.precision)
    exact = [replace(group, reference_logps=logps) for group, logps in zip(groups, scored, strict=True)]
    return exact, {"reference_logprobs": "trainer", "reference_drift": drift}


def is_noise(gaps: Sequence[float], lengths: Sequence[int], noise: float) -> bool:
    """Says whether differences of sums over tokens are no larger than noise, of no more than bfloat16 has, makes them.

    Args:
        gaps: absolute differences, in nats.
        lengths: tokens of each sum.
        noise: standard deviation of a token's difference, in nats; independent from token to token.
    """
    within = all(gap <= DEVIATIONS * noise * length**0.5 for gap, length in zip(gaps, lengths, strict=True))
    return 0 < noise <= MOST_NOISE and within


def with_other_reference(
    model: Any, groups: Sequence[PreferenceGroup], config: UpdateConfig
) -> tuple[list[PreferenceGroup], dict[str, Any]]:
    """Returns the groups with the log-probabilities of a model whose weights are not the sampler's."""
    scored = sequence_logps(model, groups, config.token_budget, precision=config.precision)
    exact = [replace(group, reference_logps=logps) for group, logps in zip(groups, scored, strict=True)]
    return exact, {"reference_logprobs": "trainer", "reference_drift": None}


def measured_rows(
    result: UpdateResult, reference_tokens: Sequence[Sequence[Sequence[float]] | None]
) -> list[dict[str, Any]]:
    """Returns the preferences that were measured after the last step, as rows of `PREFERENCE_LOGPS`.

    Args:
        reference_tokens: the log-probabilities of each one's tokens under the reference; None if they are not computed.
    """
    nothing: list[None] = [None] * len(result.sample)
    tokens, losses = result.final_tokens or nothing, result.losses_before or nothing
    measured = zip(
        result.sample, result.final_logps, losses, result.losses_after, tokens, reference_tokens, strict=True
    )
    return [
        {
            "prompt_id": group.prompt_id,
            "candidates": list(group.candidates or ()),
            "origin_round": group.origin_round,
            "reference": list(group.reference_logps),
            "before": None if loss_before is None else list(group.reference_logps),
            "after": after,
            "loss_before": loss_before,
            "loss_after": loss_after,
            "after_tokens": after_tokens,
            "reference_tokens": of_reference,
        }
        for group, after, loss_before, loss_after, after_tokens, of_reference in measured
    ]


def off_policy(groups: Sequence[PreferenceGroup], logps: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Returns the mean, and its standard error, of ``log p - log p_reference`` in nats per completion.

    The mean is over preferences, of the mean over their completions. Those of one prompt may share completions, so that
    only prompts are independent of each other: the error is the one that is robust to clusters, with n preferences of
    m prompts ``sqrt(m / (m - 1) * sum over prompts of (sum of its deviations from the mean)^2) / n`` (Liang and Zeger
    1986); with one preference a prompt that is the usual one.

    Args:
        logps: of each group's completions, under the policy p.
    """
    if not groups:
        return {}
    found = [
        fmean(ours - theirs for ours, theirs in zip(own, group.reference_logps, strict=True))
        for group, own in zip(groups, logps, strict=True)
    ]
    mean, deviations = fmean(found), defaultdict[str, float](float)
    for group, value in zip(groups, found, strict=True):
        deviations[group.prompt_id] += value - mean
    prompts, error = len(deviations), None
    if prompts > 1:
        squares = math.fsum(deviation**2 for deviation in deviations.values())
        error = math.sqrt(prompts / (prompts - 1) * squares) / len(found)
    return {"off_policy": mean, "off_policy_se": error}


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
