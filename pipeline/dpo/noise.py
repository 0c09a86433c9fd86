"""By how much two computations of one log-probability differ, though the weights are the same."""

import torch
from torch import Tensor

from pipeline.config import UpdateConfig

BFLOAT16_NOISE = 0.05
"""Standard deviation between two engines on the same weights, in nats per token, as measured on GPUs."""


def noise(config: UpdateConfig, lengths: Tensor) -> Tensor:
    """Says by how much two computations of an answer's log-probability may differ under the same weights, in nats.

    In float32 what the recipe takes for equal. In bfloat16 at least two standard deviations of a sum over so many
    tokens, of which each differs at random.
    """
    told = torch.full_like(lengths, config.reference_tolerance)
    return told if config.precision == "float32" else told.maximum(2 * BFLOAT16_NOISE * lengths.sqrt())
