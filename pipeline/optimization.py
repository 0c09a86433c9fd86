"""AdamW and the learning rate over the steps of an update."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Schedule = Literal["constant", "linear", "cosine"]


def build_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101), fused. Weights decay, vectors (biases, gains of norms) do not."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)


def learning_rate_factor(schedule: Schedule, *, steps: int, warmup_steps: int) -> Callable[[int], float]:
    """Share of the peak learning rate at a step, counted from 0.

    It rises linearly over ``warmup_steps`` (the first step is not zero), then stays, or falls to zero just
    after the last step along a line or half a cosine.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        if schedule == "constant":
            return 1.0
        return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

    return factor
