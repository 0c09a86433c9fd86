"""The optimizer of an update, and its learning rate over the steps."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.dpo.types import UpdateSettings
from pipeline.errors import ConfigError


def build_optimizer(model: nn.Module, settings: UpdateSettings) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101), fused, or with moments of 8 bits (arXiv:2110.02861), paged or not, by bitsandbytes.

    Weights decay, vectors (biases, gains of norms) do not.

    Raises:
        ConfigError: the optimizer needs bitsandbytes, which is not installed, or a GPU, which is not there.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    common: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, **common, fused=True)
    return _eight_bit(settings.optimizer, weights[0].device)(groups, **common)


def _eight_bit(name: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    if device.type == "cpu":
        raise ConfigError(f"update.optimizer '{name}' runs on a GPU and devices.trainer is cpu: choose adamw")
    try:
        import bitsandbytes.optim
    except ImportError as error:
        raise ConfigError(
            f"update.optimizer '{name}' needs bitsandbytes, which is not installed: pip install 'rondo[gpu]'"
        ) from error
    found: Callable[..., torch.optim.Optimizer] = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }[name]
    return found


def learning_rate_factor(settings: UpdateSettings, *, step: int, done: float) -> float:
    """Share of the peak learning rate at a step, counted from 0, before which this share of the update is done.

    It rises linearly over ``warmup_steps`` (the first step is not zero), then stays, or falls to zero just after the
    last step along a line or half a cosine. An update that covers a part of the schedule, from ``schedule_start`` to
    ``schedule_end``, falls along that part; only the first one warms up.
    """
    warmup = settings.own_warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    place = settings.schedule_start + (settings.schedule_end - settings.schedule_start) * done
    return 1 - place if settings.schedule == "linear" else (1 + math.cos(math.pi * place)) / 2
