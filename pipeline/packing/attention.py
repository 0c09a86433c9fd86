"""Attention over packs: each candidate attends to its prompt and to itself, as if it were alone.

A pack is one flat row of tokens without padding. All of a model works on that row; attention alone takes it apart. Each
prompt attends to itself, once; each candidate's tokens attend to the prompt's keys and to their own, gathered into rows
of similar length; and every token's result is put back to its place. Nothing of a prompt is computed twice, only its
keys are read once for each candidate. On a GPU `pipeline.packing.block_attention` takes the place of the gathering.

Axes: ``T`` tokens of a pack, ``S`` rows of a bucket, ``Q`` queries and ``L`` keys of its longest rows, ``H`` heads,
``D`` width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from pipeline.errors import UnsupportedModelError
from pipeline.packing.text_decoder import text_decoder

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
        """Attends: [1, H, T, D] in, [1, T, H, D] out; ``window`` is None or a sliding window in tokens."""


@dataclass(frozen=True)
class Rows:
    """The prompts and candidates of a pack, ``R`` of them, by places in the pack.

    A row sees ``before_R`` tokens from ``prompt_R`` on, and then its own, which are ``own_R`` tokens from ``start_R``
    on and its queries. A prompt has none before.
    """

    prompt_R: NDArray[np.int64]
    before_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    own_R: NDArray[np.int64]

    @property
    def longest(self) -> int:
        """The most keys of a row."""
        return int((self.before_R + self.own_R).max())

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        return Rows(*(column[rows] for column in (self.prompt_R, self.before_R, self.start_R, self.own_R)))


@dataclass(frozen=True)
class Bucket:
    """Rows that are computed together. ``before_S`` is the place of each row's first query among its keys; None if
    it is 0 in all of them.
    """

    rows: int
    queries: int
    keys: int
    before_S: Tensor | None

    def visible(self, window: int | None, device: torch.device) -> Tensor:
        """Says which keys a query sees, shape [S or 1, 1, Q, L], within a sliding window in tokens if there is one."""
        place_Q, key_L = torch.arange(self.queries, device=device), torch.arange(self.keys, device=device)
        if self.before_S is not None:
            place_Q = self.before_S[:, None, None, None] + place_Q[:, None]
        else:
            place_Q = place_Q[None, None, :, None]
        # A padded query, which nobody reads, sees the last key: with nothing to see it would be no number.
        distance = place_Q.clamp(max=self.keys - 1) - key_L
        seen = distance >= 0
        return seen if window is None else seen & (distance < window)


@dataclass(frozen=True)
class SequenceLayout:
    """Where each row of a pack finds its tokens.

    ``queries`` and ``keys`` hold for each position of all buckets, in order, its token in the pack; padding repeats a
    token and is never read back or seen. ``scatter_T`` holds for each token of the pack its position among the
    queries. ``longest`` is the most keys of a row.
    """

    buckets: tuple[Bucket, ...]
    queries: Tensor
    keys: Tensor
    scatter_T: Tensor
    longest: int
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> "SequenceLayout":
        buckets = tuple(
            replace(bucket, before_S=None if bucket.before_S is None else bucket.before_S.to(device))
            for bucket in self.buckets
        )
        queries, keys, scatter_T = (part.to(device) for part in (self.queries, self.keys, self.scatter_T))
        return SequenceLayout(buckets, queries, keys, scatter_T, self.longest)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, window: int | None
    ) -> Tensor:
        window = window if window is not None and window < self.longest else None
        queries = _gather(query, self.queries, [bucket.rows * bucket.queries for bucket in self.buckets])
        sizes = [bucket.rows * bucket.keys for bucket in self.buckets]
        keys, values = _gather(key, self.keys, sizes), _gather(value, self.keys, sizes)
        outputs = []
        for number, (bucket, *states) in enumerate(zip(self.buckets, queries, keys, values, strict=True)):
            heads = [
                part.unflatten(0, (bucket.rows, -1)).unflatten(2, (whole.shape[1], -1)).transpose(1, 2)
                for part, whole in zip(states, (query, key, value), strict=True)
            ]
            plain = bucket.before_S is None and window is None and softcap is None
            visible = None if plain else self._visible(number, window)
            mixed = _attend(*heads, scale=scale, softcap=softcap, visible=visible)
            outputs.append(mixed.transpose(1, 2).flatten(2).flatten(0, 1))
        mixed_T = torch.cat(outputs).index_select(0, self.scatter_T)
        return mixed_T.view(1, query.shape[2], query.shape[1], value.shape[3])

    def _visible(self, number: int, window: int | None) -> Tensor:
        """Returns the mask of a bucket, the same in all layers."""
        if (number, window) not in self._masks:
            self._masks[number, window] = self.buckets[number].visible(window, self.keys.device)
        return self._masks[number, window]


def _gather(states: Tensor, places: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = states[0].transpose(0, 1).flatten(1).index_select(0, places).split(sizes)
    return parts


def lay_out(rows: Rows, *, bucket_overhead: int = BUCKET_OVERHEAD) -> SequenceLayout:
    """Sorts rows into buckets of similar length; those that begin with their first key apart from the others.

    Each token of the pack is a query of exactly one row. Rows without queries are left out.
    """
    keys_R = rows.before_R + rows.own_R
    queries: list[NDArray[np.int64]] = []
    keys: list[NDArray[np.int64]] = []
    scatter_T = np.empty(rows.own_R.sum(), dtype=np.int64)
    buckets: list[Bucket] = []
    positions = 0
    for first in (True, False):
        kept = np.flatnonzero((rows.own_R > 0) & ((rows.before_R == 0) == first))
        ordered = kept[np.lexsort((-rows.own_R[kept], -keys_R[kept]))]
        for start, end in _split_rows(keys_R[ordered].tolist(), bucket_overhead):
            members = rows.take(ordered[start:end])
            high, wide = int(members.own_R.max()), members.longest
            places_S_Q = positions + np.arange((end - start) * high).reshape(-1, high)
            positions += places_S_Q.size
            queries_S_Q, real_S_Q = _own_tokens(members, high)
            scatter_T[queries_S_Q[real_S_Q]] = places_S_Q[real_S_Q]
            queries.append(queries_S_Q.ravel())
            keys.append(_seen_tokens(members, wide).ravel())
            before_S = None if first else torch.from_numpy(members.before_R)
            buckets.append(Bucket(end - start, high, wide, before_S))
    return SequenceLayout(
        tuple(buckets),
        queries=torch.from_numpy(np.concatenate(queries)),
        keys=torch.from_numpy(np.concatenate(keys)),
        scatter_T=torch.from_numpy(scatter_T),
        longest=rows.longest,
    )


def _own_tokens(rows: Rows, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lists each row's own tokens, ``[S, length]``, and which of them are no padding: that repeats the first one."""
    place_Q = np.arange(length)
    real_S_Q = place_Q < rows.own_R[:, None]
    return rows.start_R[:, None] + place_Q * real_S_Q, real_S_Q


def _seen_tokens(rows: Rows, length: int) -> NDArray[np.int64]:
    """Lists the tokens that each row sees, ``[S, length]``; padding repeats the first one."""
    place_L, before_S = np.arange(length), rows.before_R[:, None]
    place_S_L = place_L * (place_L < before_S + rows.own_R[:, None])
    own_S = rows.start_R[:, None] - before_S
    first_S_L: NDArray[np.int64] = np.where(place_S_L < before_S, rows.prompt_R[:, None], own_S)
    return first_S_L + place_S_L


def _split_rows(widths: Sequence[int], bucket_overhead: int) -> list[tuple[int, int]]:
    """Splits rows of falling width into buckets so that padded positions and the buckets' overhead are fewest."""
    if not widths:
        return []
    count = len(widths)
    changes = [row for row in range(1, count) if widths[row] != widths[row - 1]]
    cost: dict[int, int] = {count: 0}  # of the rows from here on
    cut: dict[int, int] = {}  # where the first bucket of those rows ends, which is only where the width changes
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
    """Lets the model compute attention by the layout that its forward pass is given; restores its own on exit."""
    with attention_of(model, NAME):
        yield


@contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """Lets the layers that read text compute attention in the way of this name; restores their own on exit."""
    layers = text_decoder(model)
    own = layers.config._attn_implementation
    if own == name:
        yield
        return
    layers.set_attn_implementation(name)
    try:
        yield
    finally:
        layers.set_attn_implementation(own)


@torch.compiler.disable  # type: ignore[untyped-decorator]
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
    """Computes attention of a flat pack, in the form that `transformers` calls: [1, H, T, D] in, [1, T, H, D] out.

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
    """Returns the sliding window of a layer; refuses a model that has one and keeps it in its mask alone."""
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


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, visible: Tensor | None
) -> Tensor:
    """Attends from [S, H, Q, D] to [S, H, L, D], causal without a mask, with a cap on scores if there is one."""
    groups = query.shape[1] // key.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None, scale=scale, enable_gqa=groups > 1
        )
    assert visible is not None
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.tanh((query * scale) @ key.transpose(2, 3) / softcap) * softcap
    weights = torch.softmax(
        scores.masked_fill(~visible, -torch.inf), dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)
    )
    return weights.to(value.dtype) @ value


AttentionInterface.register(NAME, _attention)
