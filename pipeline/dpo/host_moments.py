"""AdamW whose moments lie in main memory: the GPU has those of a few weights at a time, while a step is taken.

A step takes the parameters part by part. Each part's moments are brought to its weights, used, and put back. AdamW
treats each weight by itself, so that the parts make no difference to a single bit.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.config.devices import HOST_PART_BYTES

_HOST = torch.device("cpu")


class HostAdamW(torch.optim.AdamW):  # type: ignore[misc]
    """AdamW with moments in main memory. Its state is saved and loaded as AdamW's is."""

    part_bytes = HOST_PART_BYTES
    param_groups: list[dict[str, Any]]

    def step(self, closure: Any = None) -> None:
        """Takes a step, part by part.

        Raises:
            ValueError: a closure is given, which would be called for each part.
        """
        if closure is not None:
            raise ValueError("a step whose moments are in main memory takes no closure")
        groups = self.param_groups
        try:
            for group in groups:
                for part in _parts(group["params"], self.part_bytes):
                    self.param_groups = [{**group, "params": part}]
                    self._put(part, part[0].device)
                    super().step()
                    self._put(part, _HOST)
        finally:
            self.param_groups = groups

    def _put(self, part: Sequence[nn.Parameter], device: torch.device) -> None:
        for weight in part:
            state = self.state.get(weight)
            if state:
                self.state[weight] = {field: value.to(device) for field, value in state.items()}


def _parts(weights: Sequence[nn.Parameter], part_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Cuts the parameters that have gradients into parts whose two moments have so many bytes, or are one tensor's."""
    part, size = list[nn.Parameter](), 0
    for weight in weights:
        if weight.grad is None:
            continue
        own = 2 * weight.numel() * weight.element_size()
        if part and size + own > part_bytes:
            yield part
            part, size = [], 0
        part.append(weight)
        size += own
    if part:
        yield part
