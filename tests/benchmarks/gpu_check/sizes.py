"""How large everything is that the checks make: for a card of 80 GB or more, and in miniature for a processor."""

from dataclasses import dataclass

from benchmarks.gpu_check.measure import SHAPES, GpuShape

SMALL_7B = 4
"""Layers of a 7B that fits beside a second set of activations: a layer's share of the work does not depend on them."""


@dataclass(frozen=True)
class Heads:
    """Attention of a published model: heads of queries and of keys, and their width."""

    name: str
    query: int
    key: int
    width: int


@dataclass(frozen=True)
class Sizes:
    """Lengths in tokens.

    Args:
        lengths: of packs whose masks are compiled.
        heads: whose attention is compared, over ``prompts`` with two completions of ``completion`` tokens each.
        model: what the checks of an update train.
        pairs: of ``prompt`` + 2 x ``answer`` tokens, an update's batch.
        shapes: whose speed is measured, all weights and an adapter.
        speed: prompt, answer and token budget of that, and the tokens of a step.
        shared: prompt and completion of the packs that share a prefix, four to a prompt.
        sharing: the model that computes them.
        head: rows, width and vocabulary of the output head.
    """

    lengths: tuple[int, ...]
    heads: tuple[Heads, ...]
    prompts: tuple[int, ...]
    completion: int
    model: GpuShape
    pairs: int
    prompt: int
    answer: int
    shapes: tuple[GpuShape, ...]
    speed: tuple[int, int, int, int]
    shared: tuple[int, int]
    sharing: GpuShape
    head: tuple[int, int, int]


FULL = Sizes(
    lengths=(1, 2, 100, 127, 128, 129, 256, 257, 1000, 4096, 8191, 16_384),
    heads=(Heads("Qwen2.5-7B", 28, 4, 128), Heads("Qwen2.5-0.5B", 14, 2, 64), Heads("Llama-3.1-8B", 32, 8, 128)),
    prompts=(700, 300, 45),
    completion=190,
    model=GpuShape("0.5B, 4 layers", 896, 4864, 4, 14, 2, 151_936, tied=True),
    pairs=16,
    prompt=256,
    answer=256,
    shapes=SHAPES,
    speed=(1024, 1024, 16_384, 32_768),
    shared=(4096, 1024),
    sharing=GpuShape(f"7B, {SMALL_7B} layers", 3584, 18_944, SMALL_7B, 28, 4, 152_064, tied=False),
    head=(8192, 3584, 152_064),
)
"""Twelve minutes of an H200, by what others measured on one."""

TINY = GpuShape("tiny", 32, 48, 2, 4, 2, 100, tied=True)

MINIATURE = Sizes(
    lengths=(1, 129, 300),
    heads=(Heads("tiny", 4, 2, 16),),
    prompts=(40, 9),
    completion=12,
    model=TINY,
    pairs=4,
    prompt=8,
    answer=7,
    shapes=(TINY,),
    speed=(8, 7, 44, 80),
    shared=(32, 8),
    sharing=TINY,
    head=(40, 16, 100),
)
"""The same lines in seconds, on a processor."""


def sizes(*, miniature: bool) -> Sizes:
    """Returns the sizes of this run."""
    return MINIATURE if miniature else FULL
