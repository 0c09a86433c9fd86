"""The optimizer of an update, and its learning rate over the steps."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.config import UpdateConfig
from pipeline.dpo.host_moments import HostAdamW
from pipeline.dpo.types import RoundFacts
from pipeline.errors import ConfigError


def build_optimizer(model: nn.Module, config: UpdateConfig, *, host_moments: bool = False) -> torch.optim.Optimizer:
    """Builds AdamW (arXiv:1711.05101), fused, or bitsandbytes' with moments of 8 bits (arXiv:2110.02861), paged or not.

    Weights decay, vectors (biases, gains of norms) do not.

    Args:
        host_moments: whether AdamW keeps its moments in main memory.

    Raises:
        ConfigError: the optimizer needs bitsandbytes, which is not installed, or a GPU, which is not there.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    common: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if config.optimizer == "adamw":
        return (HostAdamW if host_moments else torch.optim.AdamW)(groups, **common, fused=True)
    return _eight_bit(config.optimizer, weights[0].device)(groups, **common)


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


def learning_rate_factor(config: UpdateConfig, facts: RoundFacts, *, step: int, done: float) -> float:
    """Gives the share of the peak learning rate at a step, from 0; ``done`` is the share of the update before it.

    It rises linearly over ``warmup_steps`` (the first step is not zero). Then it stays, or falls along a line or half a
    cosine, to zero just after the last step. An update that covers a part of the run's schedule falls along that part;
    only the first one warms up.
    """
    warmup = facts.warmup_steps(config)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    start, end = facts.schedule_part(config)
    place = start + (end - start) * done
    return 1 - place if config.schedule == "linear" else (1 + math.cos(math.pi * place)) / 2
