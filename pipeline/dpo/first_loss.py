"""What the first loss of an update has to be if policy and reference are one, and how far it may be from that.

Two engines, or two packings, compute the same log-probability but for noise. In float32 that is nothing. In bfloat16
each token is off by some hundredths of a nat, which adds up over a completion; the weight sync has measured it. What it
does to the objective is simulated, and what it can do to a completion is a bound for those of a step. So long
completions are not refused for their noise, and a reference of other weights is still found.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from statistics import fmean

import torch

from pipeline.config import UpdateConfig
from pipeline.dpo.gradients import StepOutcome
from pipeline.dpo.loss_table import Loss
from pipeline.dpo.noise import BFLOAT16_NOISE
from pipeline.dpo.preference_losses import objective, reference_batch
from pipeline.dpo.types import PreferenceGroup, RoundFacts
from pipeline.errors import FirstLossError

LEAST_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Of the first loss, relative to the expected one, by the update's precision."""
DEVIATIONS = 6
"""Standard deviations of the simulated loss that it may be off by. As the noise is known from 8 sequences, good rounds
follow Student's distribution with 8 degrees of freedom: three in ten thousand are further off."""
LARGEST_GAPS = 5.0
"""Mean over a step of a preference's largest gap, in standard deviations. Noise alone has 1.2 for pairs, 2 for rankings
of 16; another policy is tens of nats away."""
_DRAWS = 256


def expected_first_loss(
    batch: Sequence[PreferenceGroup], terms: Sequence[tuple[Loss, float]], config: UpdateConfig, facts: RoundFacts
) -> float | None:
    """Returns a step's mean objective if policy and reference are one; None if they are not, or theory gives none."""
    total = 0.0
    for loss, weight in terms:
        if not facts.reference_is_start or loss.first_loss is None:
            return None
        first = loss.first_loss
        total += weight * fmean(first(config, list(group.places)) for group in batch)
    return total


def token_noise(config: UpdateConfig, facts: RoundFacts) -> float:
    """Returns the standard deviation of a token's log-probability between policy and reference, in nats.

    It is what the weight sync measured. If nothing was, it is what bfloat16 usually has; 0 in float32.
    """
    return facts.noise or (0.0 if config.precision == "float32" else BFLOAT16_NOISE)


def first_loss_tolerance(
    batch: Sequence[PreferenceGroup],
    terms: Sequence[tuple[Loss, float]],
    config: UpdateConfig,
    expected: float,
    noise: float,
) -> float:
    """Says how far a step's mean objective may be from the expected one, in its own unit.

    Args:
        noise: standard deviation of a token's log-probability, in nats; independent from token to token.
    """
    least = LEAST_TOLERANCE[config.precision] * abs(expected)
    if not noise:
        return least
    losses = simulated_losses(batch, terms, config, noise)
    mean, deviation = losses.mean().item(), losses.std().item()
    return float(max(least, abs(mean - expected) + DEVIATIONS * deviation))


def simulated_losses(
    batch: Sequence[PreferenceGroup], terms: Sequence[tuple[Loss, float]], config: UpdateConfig, noise: float
) -> torch.Tensor:
    """Draws a step's mean objective under noise alone, ``[draws]`` (seed 0)."""
    exact = reference_batch(batch, device=torch.device("cpu"), dtype=torch.float64)
    columns = {field.name: getattr(exact, field.name).repeat_interleave(_DRAWS, dim=0) for field in fields(exact)}
    exact = replace(exact, **columns)
    generator = torch.Generator().manual_seed(0)
    errors_P_K = torch.randn(exact.lengths_P_K.shape, generator=generator, dtype=torch.float64)
    noisy = replace(exact, logps_P_K=exact.logps_P_K + noise * exact.lengths_P_K.sqrt() * errors_P_K)
    return objective(noisy, terms, config).view(len(batch), _DRAWS).mean(dim=0)


def check_first_loss(
    outcome: StepOutcome,
    batch: Sequence[PreferenceGroup],
    terms: Sequence[tuple[Loss, float]],
    config: UpdateConfig,
    facts: RoundFacts,
) -> float | None:
    """Returns the first loss that theory gives, None if it gives none.

    Raises:
        FirstLossError: the loss is another one, or the reference is further from the policy than noise can be.
    """
    expected = expected_first_loss(batch, terms, config, facts)
    if expected is None:
        return None
    loss, noise = outcome.objective.mean().item(), token_noise(config, facts)
    tolerance = first_loss_tolerance(batch, terms, config, expected, noise)
    longest = [max(map(len, group.candidate_token_ids)) for group in batch]
    gaps = fmean(gap / length**0.5 for gap, length in zip(outcome.drift.tolist(), longest, strict=True))
    if abs(loss - expected) <= tolerance and (not noise or gaps <= LARGEST_GAPS * noise):
        return expected
    raise FirstLossError(
        f"the first loss is {loss:.6f} and theory gives {expected:.6f}, give or take {tolerance:.2g}, if policy and "
        f"reference are one; the largest difference between the two is {outcome.drift.max().item():.3g} nats a sequence"
        f"{f', where noise of {noise:.2g} nats a token is expected' if noise else ''}. The reference "
        "log-probabilities are not those of these weights: look for a sampler that kept older weights, other "
        "token ids (a missing end-of-sequence token), tempered log-probabilities, or dropout; "
        "reference_logprobs: trainer computes them here. No step was taken"
    )
