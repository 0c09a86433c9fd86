"""The output head, whose weight the projection of log-probabilities reads: it is never called."""

from typing import Any

import torch
from torch import Tensor


def head_weight(head: Any) -> Tensor:
    """Returns the weight that an output head multiplies by, ``[V, D]``, differentiable in that of an adapter on it.

    With an adapter this is a tensor as large as the head's weight, made anew in each pass.
    """
    weight: Tensor = head.weight
    if not hasattr(head, "lora_A"):
        return weight
    with torch.autocast(weight.device.type, enabled=False):
        for name in head.active_adapters:
            weight = weight + head.scaling[name] * (head.lora_B[name].weight @ head.lora_A[name].weight)
    return weight
