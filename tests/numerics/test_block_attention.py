"""Attention by a mask of blocks, as on a GPU, is the gathered one and the plain model's: uncompiled, on CPU."""

import warnings
from itertools import product

import pytest
import torch
from numerics.tiny_models import BUILDERS, build, gradients, plain_logps, token_groups
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from pipeline.model.logprobs import pack_logps, pack_sums
from pipeline.packing import block_attention, packing
from pipeline.packing.block_attention import BlockLayout, whole_blocks
from pipeline.packing.packing import TokenGroup, pack_groups

# As for the gathered path: float32 sums of up to 9 log-probabilities near 5 nats, in another order.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
CLOSE_GRADIENT = {"rtol": 1e-4, "atol": 1e-4}
CPU = torch.device("cpu")


@pytest.fixture
def blocks_on_cpu(monkeypatch):
    """Packs take the mask of blocks here too. torch refuses a gradient on CPU, as it has no compiled kernel for it; the
    uncompiled one has the formulas and is what these tests want, so the refusal is taken away.
    """
    monkeypatch.setattr(packing, "BLOCK_DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


def pull(model, packs):
    """Sums of all candidates, and the gradient when each of them pulls differently."""
    sums = torch.cat([pack_sums(model, pack) for pack in packs])
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    return sums.detach(), gradients(model)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", BUILDERS)
def test_equals_the_gathered_and_the_plain_path_in_value_and_gradient(name, request):
    """Grouped heads, capped scores, a window of 5 tokens within sequences of up to 18, and learned positions."""
    model, groups = build(name), token_groups(4, candidates=3, seed=2)
    packs = pack_groups(groups, token_budget=60)
    assert len(packs) > 1  # of different lengths
    gathered, gradient = pull(model, packs)
    request.getfixturevalue("blocks_on_cpu")
    blocks, block_gradient = pull(model, packs)
    torch.testing.assert_close(blocks, gathered, **CLOSE)
    torch.testing.assert_close(block_gradient, gradient, **CLOSE_GRADIENT)
    order = [index for pack in packs for index in pack.groups]
    with torch.no_grad():
        plain = torch.cat([plain_logps(model, groups[index]) for index in order])
    torch.testing.assert_close(blocks, plain, **CLOSE)


def packed(prompts):
    """A pack of so many prompts of these lengths, each with candidates of 8 and 6 tokens."""
    (pack,) = pack_groups([TokenGroup(f"{n}", [1] * n, [[2] * 8, [3] * 6]) for n in prompts], token_budget=1000)
    return pack


def states(layout, dtype, *, trained=False):
    """Queries of 6 heads, and keys of 2, of width 16."""
    torch.manual_seed(0)
    tokens = len(layout._segment_T)
    query, key, value = (torch.randn(1, heads, tokens, 16).to(dtype) for heads in (6, 2, 2))
    return query.requires_grad_(trained), key, value


CAPPED = {"scale": 0.25, "softcap": 30.0}
LENGTHS = ([100], [90, 100], [100, 200], [100, 200, 60])
"""Of prompts: packs that are padded to 2 blocks, which have an eager mask, 2, 3 and 4."""


@pytest.fixture
def compiler(monkeypatch):
    """Not left off, as by a test that has a sampler for the CPU in this process; with nothing compiled yet."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_compiles_six_variants_each_as_a_whole_and_once(dtype, blocks_on_cpu, compiler, monkeypatch):
    """As on a GPU, but for the kernels: capped scores, with a window and without, with gradient and without, packs of
    several lengths. What is left uncompiled has scores of [H, T, T] there.
    """
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = block_attention._kernels.__wrapped__("cuda", backend)
    monkeypatch.setattr(block_attention, "_kernels", lambda _device: compiled)
    for prompts, window, trained in product(LENGTHS, (None, 50), (False, True)):
        layout = packed(prompts).on(CPU).layout
        with torch.set_grad_enabled(trained):
            mixed = layout.attend(*states(layout, dtype, trained=trained), **CAPPED, window=window)
        assert mixed.requires_grad == trained
    assert not counters["graph_break"]
    # Four of the attention, and of the mask two, one for each window; the aim is 8 at most.
    assert len(graphs) == 4 + 2


@pytest.mark.nightly
def test_inductor_compiles_each_variant_once_and_it_is_right(blocks_on_cpu, compiler, monkeypatch):
    """Compiled for real, without gradient, for which torch has no kernel on CPU; about a minute."""
    compiled = block_attention._kernels.__wrapped__("cuda")
    plain = (torch_flex.flex_attention, torch_flex.create_block_mask)
    found = {}
    for kernels in (compiled, plain):
        monkeypatch.setattr(block_attention, "_kernels", lambda _device, kernels=kernels: kernels)
        for prompts, window in product(LENGTHS, (None, 50)):
            layout = packed(prompts).on(CPU).layout
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                mixed = layout.attend(*states(layout, torch.float32), **CAPPED, window=window)
            found.setdefault((*prompts, window), []).append(mixed)
        if kernels is compiled:  # the plain one traces too, in a way of its own
            assert not counters["graph_break"]
            assert counters["stats"]["unique_graphs"] == 2 + 2
    for fused, reference in found.values():
        torch.testing.assert_close(fused, reference, **CLOSE)


@pytest.mark.parametrize(("tokens", "padded"), [(1, 256), (128, 256), (256, 256), (257, 384), (16_384, 16_384)])
def test_packs_are_padded_to_whole_blocks_and_small_masks_are_eager(tokens, padded, blocks_on_cpu, monkeypatch):
    """A mask of one block is what Inductor cannot make for Triton: none has one, and none up to two is compiled."""
    compiled = []

    def create(*arguments, **named):
        compiled.append(arguments)
        return torch_flex.create_block_mask(*arguments, **named)

    monkeypatch.setattr(block_attention, "_kernels", lambda _device: (None, create))
    if tokens == 16_384:  # 268 million pairs are made without the compiler: only the length is looked at
        assert whole_blocks(tokens) == padded
        return
    (pack,) = pack_groups([TokenGroup("one", [1] * tokens, [[2]])], token_budget=tokens)
    inputs = pack.on(CPU)
    assert len(inputs.input_ids_T) == len(inputs.position_ids_T) == padded
    assert inputs.layout.mask(None).shape == (1, 1, padded, padded)
    assert len(compiled) == (padded > 256)


def test_padding_is_seen_by_nobody_and_sees_itself(blocks_on_cpu):
    """Else its softmax were that of nothing, which is no number, and its gradient too."""
    inputs = packed([10]).on(CPU)
    tokens, places = 10 + 7 + 5, torch.arange(256)
    zero = torch.tensor(0)
    for window in (None, 4):
        visible = inputs.layout.mask(window).mask_mod(zero, zero, places[:, None], places[None])
        assert not visible[:tokens, tokens:].any()
        assert not visible[tokens:, :tokens].any()
        assert visible.any(dim=1).all()


def test_a_token_sees_its_prompt_and_its_own_candidate():
    """A prompt of 2 and inputs of 2 and 1 tokens, a second prompt alone: P P a a b | Q, by hand."""
    groups = [TokenGroup("one", [1, 2], [[3, 4, 5], [6, 7]]), TokenGroup("two", [8], [[9]])]
    (pack,) = pack_groups(groups, token_budget=10)
    seen = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    near = [row[:] for row in seen]
    near[2][0] = near[3][0] = near[3][1] = near[4][0] = 0  # a window of 2 positions; b follows the prompt's second
    layout = BlockLayout(pack.segment_T, pack.prompt_T, pack.position_ids_T, pack.layout.longest)
    places = torch.arange(6)
    for window, expected in ((None, seen), (2, near)):
        visible = layout.mask(window).mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None])
        assert visible.int().tolist() == expected


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "masks"), [("llama", 1), ("gemma2", 2)])
def test_a_mask_is_made_once_for_a_pack_and_a_window_not_once_for_a_layer(name, masks, blocks_on_cpu, monkeypatch):
    """The second layer of Gemma 2 sees all, the first a window."""
    made = []
    original = BlockLayout._sees
    monkeypatch.setattr(BlockLayout, "_sees", lambda self, window: (made.append(window), original(self, window))[1])
    (pack,) = pack_groups(token_groups(2, seed=1), token_budget=200)
    with torch.no_grad():
        pack_logps(build(name), pack)
    assert len(made) == len(set(made)) == masks


def test_blocks_that_see_nothing_of_each_other_are_skipped():
    """Four prompts of 128 tokens, each a block: of the 16 blocks the 4 on the diagonal are left."""
    groups = [TokenGroup(f"prompt-{row}", [1] * 128, [[2]]) for row in range(4)]
    (pack,) = pack_groups(groups, token_budget=512)
    layout = BlockLayout(pack.segment_T, pack.prompt_T, pack.position_ids_T, pack.layout.longest)
    assert layout.mask(None).sparsity() == 75.0
