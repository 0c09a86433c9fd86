"""How far a sampler is from the trainer after it has got new weights: on the policy's probe, and on what it samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.workers.references import Drift
from pipeline.config import SamplingConfig
from pipeline.sampling import Sampler, SamplingRequest, finish

DECODED_TOKENS = 4
"""Tokens that are sampled after each of the probe's prompts: enough to read the cache that decoding writes."""


def compare_with_probe(
    sampler: Sampler, probe: Sequence[Mapping[str, Any]], config: SamplingConfig
) -> tuple[Drift, list[float]]:
    """Compares the sampler with the trainer on the probe, and its decoding with its own scoring.

    The probe's answers are scored as prompts are: that is its prefill. Then it samples a few tokens after each prompt,
    which it scores too: that is its decoding.

    Returns:
        The drift, without a time, and the sampler's sum for each answer of the probe.
    """
    shortest = min(len(row["token_ids"]) for row in probe)
    few = config.model_copy(
        update={"candidates": 1, "max_tokens": min(DECODED_TOKENS, shortest), "temperature": 1.0, "top_p": 1.0}
    )
    requests = [SamplingRequest(f"probe {index}", row["prompt_token_ids"], index) for index, row in enumerate(probe)]
    decoded = finish(sampler.sample(requests, few))
    answers = [(row["prompt_token_ids"], row["token_ids"]) for row in probe]
    own = [(row["prompt_token_ids"], answer.token_ids) for row, answer in zip(probe, decoded, strict=True)]
    scored = [sum(logps) for logps in sampler.score([*answers, *own])]
    sums, again = scored[: len(probe)], scored[len(probe) :]
    lengths = [len(row["token_ids"]) for row in probe]
    gaps = [abs(found - row["logp"]) for found, row in zip(sums, probe, strict=True)]
    drift = Drift(
        per_token=max(gap / length for gap, length in zip(gaps, lengths, strict=True)),
        per_sequence=max(gaps),
        seconds=0.0,
        noise=estimated_noise(gaps, lengths),
        decoding=max(
            abs(sum(answer.logprobs) - score) / len(answer.token_ids)
            for answer, score in zip(decoded, again, strict=True)
        ),
    )
    return drift, sums


def estimated_noise(gaps: Sequence[float], lengths: Sequence[int]) -> float:
    """Estimates the standard deviation of a token's difference, in nats, by the differences of sums over tokens.

    The tokens' are taken for independent, so that the variance of a sum is its number of tokens times a token's.
    """
    return float((sum(gap**2 / length for gap, length in zip(gaps, lengths, strict=True)) / len(gaps)) ** 0.5)


def nearer_to_previous(sums: Sequence[float], probe: Sequence[Mapping[str, Any]]) -> bool:
    """Says whether an engine computes with the weights from before the update.

    In bfloat16 its noise may exceed what a round changes, so that no tolerance tells; but noise has no direction. Its
    deviation is estimated by the distance from the old policy. The two policies must be six deviations apart, so that
    the middle between them is three away. Within a tenth of a nat a sequence they count as one, and the answer is no.
    """
    known = [(found, row) for found, row in zip(sums, probe, strict=True) if row.get("previous_logp") is not None]
    moved = sum((row["logp"] - row["previous_logp"]) ** 2 for _, row in known)
    followed = sum((found - row["previous_logp"]) * (row["logp"] - row["previous_logp"]) for found, row in known)
    noise = sum((found - row["previous_logp"]) ** 2 for found, row in known) / max(len(known), 1)
    return bool(moved > len(known) * 0.1**2 and moved > 6**2 * noise and followed < moved / 2)
