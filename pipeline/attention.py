"""Attention over packs: each candidate attends to its prompt and to itself, as if it were alone.

A pack is one flat row of tokens without padding. All of a model works on that row; attention alone gathers
each prompt with one candidate into a sequence of its own, where plain causal attention is exact and no mask
is needed, and puts the results back. The prompt's keys are read once for each candidate; its projections and
feed-forward layers are computed once. On a GPU `pipeline.block_attention` takes the place of the gathering.

Axes: ``T`` tokens of a pack, ``S`` sequences (a prompt with one candidate) of a bucket, ``L`` its longest
sequence, ``H`` heads, ``D`` width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from pipeline.errors import UnsupportedModelError

NAME = "rondo_shared_prefix"
"""The name under which `transformers` knows this attention."""

BUCKET_OVERHEAD = 64
"""What one more bucket costs, in positions of a sequence: measured on CPU for heads of width 32."""


class Layout(Protocol):
    """What attention knows of a pack: its longest sequence in tokens, and how to attend."""

    @property
    def longest(self) -> int: ...

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, window: int | None
    ) -> Tensor:
        """[1, H, T, D] in, [1, T, H, D] out; ``window`` is None or a sliding window in tokens."""


@dataclass(frozen=True)
class SequenceLayout:
    """Where each sequence of a pack finds its tokens.

    ``buckets`` are shapes (S, L). ``gather`` holds for each position of all buckets, in order, its token in
    the pack (padding repeats a token and is never read back); ``scatter_T`` holds for each token of the pack
    one such position.
    """

    buckets: tuple[tuple[int, int], ...]
    gather: Tensor
    scatter_T: Tensor

    def to(self, device: torch.device) -> "SequenceLayout":
        return SequenceLayout(self.buckets, self.gather.to(device), self.scatter_T.to(device))

    @property
    def longest(self) -> int:
        return max(length for _, length in self.buckets)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, window: int | None
    ) -> Tensor:
        sizes = [sequences * length for sequences, length in self.buckets]
        gathered = [
            states[0].transpose(0, 1).flatten(1).index_select(0, self.gather).split(sizes)
            for states in (query, key, value)
        ]
        outputs = []
        for (sequences, length), *states in zip(self.buckets, *gathered, strict=True):
            heads = [
                part.view(sequences, length, whole.shape[1], whole.shape[3]).transpose(1, 2)
                for part, whole in zip(states, (query, key, value), strict=True)
            ]
            mixed = _causal(*heads, scale=scale, softcap=softcap, window=window)
            outputs.append(mixed.transpose(1, 2).flatten(2).flatten(0, 1))
        mixed_T = torch.cat(outputs).index_select(0, self.scatter_T)
        return mixed_T.view(1, query.shape[2], query.shape[1], value.shape[3])


def lay_out(
    sequences: Sequence[Sequence[int]], tokens: int, *, bucket_overhead: int = BUCKET_OVERHEAD
) -> SequenceLayout:
    """Sort sequences, each a list of its tokens' places in the pack, into buckets of similar length."""
    ordered = sorted(sequences, key=len, reverse=True)
    gather: list[int] = []
    scatter = [0] * tokens
    buckets: list[tuple[int, int]] = []
    for start, end in _split_rows([len(sequence) for sequence in ordered], bucket_overhead):
        width = len(ordered[start])
        for sequence in ordered[start:end]:
            for place, token in enumerate(sequence, start=len(gather)):
                scatter[token] = place
            gather.extend(sequence)
            gather.extend([sequence[0]] * (width - len(sequence)))
        buckets.append((end - start, width))
    return SequenceLayout(tuple(buckets), torch.tensor(gather), torch.tensor(scatter))


def _split_rows(widths: Sequence[int], bucket_overhead: int) -> list[tuple[int, int]]:
    """Split rows of falling width into buckets so that padded positions and the buckets' overhead are fewest."""
    count = len(widths)
    changes = [row for row in range(1, count) if widths[row] != widths[row - 1]]
    cost: dict[int, int] = {count: 0}  # of the rows from here on
    cut: dict[int, int] = {}  # where the first bucket of those rows ends: only where the width changes
    for start in [*changes[::-1], 0]:
        cost[start], cut[start] = min(
            ((end - start) * widths[start] + bucket_overhead + rest, end) for end, rest in cost.items()
        )
    buckets, start = [], 0
    while start < count:
        buckets.append((start, cut[start]))
        start = cut[start]
    return buckets


@contextmanager
def shared_prefix_attention(model: Any) -> Iterator[None]:
    """Let the model compute attention by the layout that its forward pass is given; restore its own on exit."""
    own = model.config._attn_implementation
    if own == NAME:
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sequence_layout: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a flat pack, in the form that `transformers` calls: [1, H, T, D] in, [1, T, H, D] out.

    A compiled layer leaves it out: each pack has shapes of its own here, and each would be compiled.
    """
    if sequence_layout is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} does not hand its attention the layout of a pack: use another model"
        )
    window = _window(module, others, longest=sequence_layout.longest)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return sequence_layout.attend(query, key, value, scale=scale, softcap=softcap, window=window), None


def _window(module: Any, given: dict[str, Any], *, longest: int) -> int | None:
    """The sliding window of a layer. A model that has one and keeps it in its mask alone is refused."""
    if "sliding_window" in given:
        window: int | None = given["sliding_window"]
        return window
    limit = getattr(getattr(module, "config", None), "sliding_window", None)
    if limit and longest > limit:
        raise UnsupportedModelError(
            f"{type(module).__name__} has a sliding window of {limit} tokens that it does not hand on, and a "
            f"sequence has {longest}: shorten prompts or candidates, or use another model"
        )
    return None


def _causal(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, window: int | None
) -> Tensor:
    """Causal attention on [S, H, L, D], with a cap on scores and a sliding window where the model has them."""
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    if window is not None and window >= length:
        window = None
    if softcap is None and window is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1)
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    if window is not None:
        hidden |= torch.ones_like(hidden).tril(-window)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query * scale) @ key.transpose(2, 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(
        scores.masked_fill(hidden, -torch.inf), dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)
    )
    return weights.to(value.dtype) @ value


AttentionInterface.register(NAME, _attention)
