"""AdamW whose moments lie in main memory: the GPU has those of a few weights at a time, while a step is taken.

A step takes the parameters part by part. Each part's moments are brought to its weights, used, and put back. AdamW
treats each weight by itself, so that the parts make no difference to a single bit.

Of weights that are spread over ranks, each rank keeps plain tensors, which are its own pieces of the moments. torch
would move a spread tensor to main memory too, but leave it on the mesh of GPUs, whose collectives refuse what lies
there. Nothing in a step waits for another rank, so that ranks may cut their pieces into other parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.devices import HOST_PART_BYTES
from pipeline.model.distributed import join_pieces, local

_HOST = torch.device("cpu")


class HostAdamW(torch.optim.AdamW):  # type: ignore[misc]
    """AdamW with moments in main memory: between steps, its state of a weight is this rank's piece of each."""

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
                    with self._beside(part):
                        super().step()
        finally:
            self.param_groups = groups

    def brought(self, weight: nn.Parameter, field: str) -> Tensor:
        """Returns a field of a weight's state as AdamW has it: beside the weight, and spread as that is."""
        value: Tensor = self.state[weight][field]
        if not value.ndim:  # steps, which each rank counts
            return value.to(weight.device)
        return join_pieces(value, weight, weight)

    def keep(self, weight: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Puts a weight's state, as AdamW has it, into main memory."""
        self.state[weight] = {field: local(value).to(_HOST) for field, value in state.items()}

    @contextmanager
    def _beside(self, part: Sequence[nn.Parameter]) -> Iterator[None]:
        """Has the part's moments beside its weights meanwhile."""
        try:
            for weight in part:
                if state := self.state.get(weight):
                    self.state[weight] = {field: self.brought(weight, field) for field in state}
            yield
        finally:
            for weight in part:
                self.keep(weight, self.state[weight])


def _parts(weights: Sequence[nn.Parameter], part_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Cuts the parameters that have gradients into parts whose two moments have so many bytes here, or are one's."""
    part, size = list[nn.Parameter](), 0
    for weight in weights:
        if weight.grad is None:
            continue
        own = 2 * local(weight).nbytes
        if part and size + own > part_bytes:
            yield part
            part, size = [], 0
        part.append(weight)
        size += own
    if part:
        yield part
