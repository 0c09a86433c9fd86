"""Masks and attention: how often they are compiled, and whether the compiled ones are right."""

from itertools import product
from time import perf_counter
from typing import Any

import torch
from benchmarks.gpu_check.runner import Report
from benchmarks.gpu_check.sizes import Heads, Sizes
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from pipeline.packing import packing
from pipeline.packing.block_attention import BLOCK, BlockLayout
from pipeline.packing.packing import Pack, TokenGroup, pack_groups

MOST_VARIANTS = 8
DENSE_TOKENS = 2048
"""Longest pack whose mask is also made in full, 4 million pairs, and compared."""

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""Of the norm of a difference, relative to the norm of what is right, which the gathered path computes in float64 from
the same inputs. bfloat16 keeps 8 bits, so that each rounding is off by 2^-9 at most and 0.1% on average. Scores,
weights and outputs, and in the backward pass their gradients, are rounded one after the other: some four to six
roundings of random sign make 0.3% to 0.5%. Products of float32 that went through TF32, with 11 bits, would be off by
3e-4: float32's own 24 bits, over sums of a few hundred, leave 1e-6."""


def blocks_on(device: str) -> torch.device:
    """Lets packs take the mask of blocks on this device. A processor takes it uncompiled, with gradients too, which
    torch refuses there as it has no compiled kernel for them.
    """
    if device == "cpu":
        packing.BLOCK_DEVICES = frozenset({"cpu"})
        torch_flex._validate_device = lambda *_: None
    return torch.device(device)


def pack_of(tokens: int) -> Pack:
    """Makes a pack of so many tokens: a prompt of half of them, and two completions."""
    prompt = max(1, tokens // 2)
    first = (tokens - prompt) // 2
    lengths = (first + 1, tokens - prompt - first + 1)  # of a completion the last token is no input
    return pack_groups([TokenGroup("one", [1] * prompt, [[2] * length for length in lengths])], tokens)[0]


def states(heads: Heads, tokens: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Draws queries, keys and values, [1, H, T, D] (seed 0)."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, count, tokens, heads.width) for count in (heads.query, heads.key, heads.key)]
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]


def compilation(report: Report, sizes: Sizes, device: str) -> None:
    """Counts what is compiled over packs of all lengths, and compares their masks with those made in full."""
    place, heads = blocks_on(device), sizes.heads[0]
    for tokens in sizes.lengths:
        started = perf_counter()
        layout = pack_of(tokens).on(place).layout
        assert isinstance(layout, BlockLayout)
        for window, trained in product((None, max(1, tokens // 3)), (False, True)):
            query, key, value = states(heads, len(layout._segment_T), place, torch.bfloat16)
            with torch.set_grad_enabled(trained):
                query.requires_grad_(trained)
                mixed = layout.attend(query, key, value, scale=heads.width**-0.5, softcap=None, window=window)
            if trained:
                mixed.sum().backward()
                report.hold(
                    bool(query.grad.isfinite().all()), f"{tokens} tokens, window {window}: gradient is no number"
                )
            report.hold(bool(mixed.isfinite().all()), f"{tokens} tokens, window {window}: output is no number")
            if tokens <= DENSE_TOKENS:
                report.hold(
                    _mask_is_right(layout, window), f"{tokens} tokens, window {window}: blocks are not the mask's"
                )
        report.note(seconds_by_tokens={str(tokens): round(perf_counter() - started, 2)})
    variants, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    report.note(variants=variants, graph_breaks=breaks, by_inductor=device != "cpu")
    report.hold(not breaks, f"{breaks} graph breaks: {list(counters['graph_break'])[:3]}")
    report.hold(variants <= MOST_VARIANTS, f"{variants} variants were compiled, more than {MOST_VARIANTS}")
    report.hold(device == "cpu" or variants > 0, "nothing was compiled")


def _mask_is_right(layout: BlockLayout, window: int | None) -> bool:
    """Compares the blocks that a mask visits with those in which any pair of tokens sees each other."""
    near = window if window is not None and window < layout.longest else None
    mask = layout.mask(near)
    places = torch.arange(len(layout._segment_T), device=layout._segment_T.device)
    zero = torch.zeros((), dtype=torch.int64, device=places.device)
    seen = layout._sees(near)(zero, zero, places[:, None], places[None])
    blocks = seen.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).any(dim=3).any(dim=1)
    return bool((mask.to_dense()[0, 0].bool() == blocks).all())


CASES = tuple(
    (bent, near, dtype)
    for dtype, modes in (
        (torch.bfloat16, ((False, False), (True, True), (True, False), (False, True))),
        (torch.float32, ((True, True), (False, False))),
    )
    for bent, near in modes
)
"""Capped scores, a window, precision. For the first heads all of them, for the others those with both or neither."""


def attention(report: Report, sizes: Sizes, device: str) -> None:
    """Compares attention by blocks with the gathered one, forward and backward."""
    place = blocks_on(device)
    groups = [
        TokenGroup(f"{length}", [1] * length, [[2] * sizes.completion, [3] * (sizes.completion // 2 + 1)])
        for length in sizes.prompts
    ]
    (pack,) = pack_groups(groups, sum(group.packed_tokens for group in groups))
    for bent, near, dtype in CASES:
        for heads in sizes.heads if bent == near else sizes.heads[:1]:
            case = f"{heads.name}, {str(dtype)[6:]}{', cap' * bent}{', window' * near}"
            started = perf_counter()
            window = max(sizes.prompts) // 3 if near else None
            errors = _compare(pack, heads, place, dtype, softcap=2.0 if bent else None, window=window)
            worst = max(errors.values())
            report.note(**{case: {**errors, "seconds": round(perf_counter() - started, 2)}})
            report.note(worst={str(dtype)[6:]: worst})
            report.hold(worst <= TOLERANCE[dtype], f"{case}: off by {worst:.2g}, more than {TOLERANCE[dtype]:g}")


def _compare(
    pack: Pack, heads: Heads, place: torch.device, dtype: torch.dtype, *, softcap: float | None, window: int | None
) -> dict[str, float]:
    """Returns the relative errors of output and gradients."""
    blocks, rows, tokens = pack.on(place).layout, pack.layout.to(place), len(pack.segment_T)
    assert isinstance(blocks, BlockLayout)
    drawn = states(heads, len(blocks._segment_T), place, dtype)
    generator = torch.Generator(place).manual_seed(1)
    pull = torch.randn(1, tokens, heads.query, heads.width, generator=generator, device=place).to(dtype)

    def through(layout: Any, length: int, kind: torch.dtype) -> list[Tensor]:
        leaves = [part[:, :, :length].detach().to(kind).requires_grad_() for part in drawn]
        settings = {"scale": heads.width**-0.5, "softcap": softcap, "window": window}
        mixed = layout.attend(*leaves, **settings)[:, :tokens]
        mixed.backward(pull.to(kind))
        return [mixed.detach(), *(leaf.grad[:, :, :tokens] for leaf in leaves)]

    right = through(rows, tokens, torch.float64)
    found = through(blocks, len(blocks._segment_T), dtype)
    names = ("output", "query", "key", "value")
    return {name: relative(a, b) for name, a, b in zip(names, found, right, strict=True)}


def relative(found: Tensor, right: Tensor) -> float:
    """Returns the norm of a difference over that of what is right."""
    return float((found.double() - right.double()).norm() / right.double().norm())
