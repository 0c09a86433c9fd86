"""Attention over packs with one kernel and a mask of blocks, for GPUs: FlexAttention, arXiv:2412.05496.

A pack stays one flat row. The mask lets each token see its own prompt and its own candidate, and no other one. Blocks
of tokens that see nothing of each other are skipped. Nothing is gathered, and only the end of the row is padded, to
whole blocks: of other lengths the compiled backward pass of capped scores can be no number (pytorch 153799), and a
single block would be compiled apart from several. On CUDA kernel and mask are compiled; Inductor cannot make the mask
of a single block for Triton, and the smallest masks, which cost nothing, are made without it. Elsewhere the same
function runs uncompiled, with scores of shape ``[H, T, T]``. That is for tests, which compare mask, values and
gradients with the gathered path of `pipeline.packing.attention` and with plain forward passes. The compiled backward
pass needs a GPU, and none has run it so far: `make gpu-check` does.

Axes: ``T`` tokens of a pack, ``H`` heads, ``D`` width of a head.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

BLOCK_DEVICES = frozenset({"cuda"})
"""Where packs take this attention."""

BLOCK = 128
"""Tokens of a block."""

EAGER_TOKENS = 2 * BLOCK
"""Up to this length a mask is made without the compiler."""


def whole_blocks(tokens: int) -> int:
    """Returns the length that a row of so many tokens is padded to: whole blocks, and at least two."""
    return max(2, -(-tokens // BLOCK)) * BLOCK


class BlockLayout:
    """What a token of a pack may see, as a mask of blocks: made once for a pack, and once for each sliding window.

    Args:
        segment_T: where in the pack the prompt or candidate begins that a token is part of.
        prompt_T: where its prompt begins; for a token of a prompt the same.
        position_T: its place in its sequence, a prompt with one candidate.
        longest: tokens of the longest sequence.
    """

    def __init__(self, segment_T: Tensor, prompt_T: Tensor, position_T: Tensor, longest: int) -> None:
        self.longest = longest
        self._segment_T, self._prompt_T, self._position_T = segment_T, prompt_T, position_T
        self._masks: dict[int | None, BlockMask] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, window: int | None
    ) -> Tensor:
        """Computes attention of a flat pack: [1, H, T, D] in, [1, T, H, D] out. Key and value may have fewer heads."""
        attend, _ = _kernels(query.device.type)
        states = (query, key, value)
        if torch.is_autocast_enabled(query.device.type):  # norms of queries and keys leave them in float32
            dtype = torch.get_autocast_dtype(query.device.type)
            states = (query.to(dtype), key.to(dtype), value.to(dtype))
        mixed: Tensor = attend(
            *states,
            score_mod=None if softcap is None else _capped(_number(softcap, query.device)),
            block_mask=self.mask(window if window is not None and window < self.longest else None),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return mixed.transpose(1, 2)

    def mask(self, window: int | None) -> BlockMask:
        """Gives the mask of all layers with this sliding window, in tokens; None is a layer that sees all before it."""
        if window not in self._masks:
            tokens = len(self._segment_T)
            _, compiled = _kernels(self._segment_T.device.type)
            create = create_block_mask if tokens <= EAGER_TOKENS else compiled
            with torch.no_grad():  # a mask has no gradient, and torch compiles apart for each gradient mode
                self._masks[window] = create(self._sees(window), 1, 1, tokens, tokens, device=self._segment_T.device)
        return self._masks[window]

    def _sees(self, window: int | None) -> Callable[..., Tensor]:
        segment_T, prompt_T, position_T = self._segment_T, self._prompt_T, self._position_T

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (segment_T[key] == segment_T[query]) | (segment_T[key] == prompt_T[query])
            return own & (key <= query)

        if window is None:
            return sees
        reach = _number(window, segment_T.device)

        def sees_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees(batch, head, query, key) & (position_T[query] - position_T[key] < reach)

        return sees_near


def _number(value: float, device: torch.device) -> Tensor:
    """Makes a number as kernels take it: a plain one that they close over breaks the compiled backward pass."""
    return torch.full((), value, device=device)


def _capped(cap: Tensor) -> Callable[..., Tensor]:
    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


@cache
def _kernels(device: str, backend: str = "inductor") -> tuple[Any, Any]:
    """Returns the attention and the maker of masks. Packs differ in length: one compilation serves all of them.

    There is one of the attention with gradient and one without, and one of the mask; twice as many if some layers have
    a window. A run has one precision, so it compiles 3 variants, or 6: two nightly tests count them, and were seen to
    pass on a processor with torch 2.13, 2026-11-30. A function that is not compiled as a whole, or not at all as
    torch's limit is reached, is an error: uncompiled, a pack of 16,384 tokens has scores of 15 GB.
    """
    if device not in BLOCK_DEVICES:
        return flex_attention, create_block_mask
    # Of all precisions and models that a process may compute with.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    attend, create = (
        torch.compile(part, dynamic=True, fullgraph=True, backend=backend)
        for part in (flex_attention, create_block_mask)
    )
    return _of_any_size(attend), _of_any_size(create)


def _of_any_size(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function be compiled without holding two sizes for one because they are equal in the first pack.

    As many blocks as heads of keys, say 2 of each, would else be compiled again for the next pack.
    """

    def call(*arguments: Any, **named: Any) -> Any:
        with fx_config.patch(use_duck_shape=False):
            return function(*arguments, **named)

    return call
