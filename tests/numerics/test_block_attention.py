"""Attention by a mask of blocks, as on a GPU, is the gathered one and the plain model's: uncompiled, on CPU."""

from itertools import product

import pytest
import torch
from numerics.tiny_models import BUILDERS, build, gradients, plain_logps, token_groups
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from pipeline.model.logprobs import pack_logps, pack_sums
from pipeline.packing import block_attention, packing
from pipeline.packing.block_attention import BlockLayout
from pipeline.packing.packing import TokenGroup, pack_groups

# As for the gathered path: float32 sums of up to 9 log-probabilities near 5 nats, in another order.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
CLOSE_GRADIENT = {"rtol": 1e-4, "atol": 1e-4}


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


@pytest.mark.nightly
def test_every_variant_is_compiled_as_a_whole_and_once(blocks_on_cpu, monkeypatch):
    """As on a GPU, but for the kernels: capped scores, with a window and without, both precisions, with gradient and
    without, one block of tokens and several. What is left uncompiled has scores of [H, T, T] there.
    """
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # which a test of the sampler may have left
    torch._dynamo.reset()
    counters.clear()
    compiled = block_attention._kernels("cuda", backend)
    monkeypatch.setattr(block_attention, "_kernels", lambda _device: compiled)
    for prompts in ([100], [90, 100], [100, 200, 60]):
        groups = [TokenGroup(f"{n}", [1] * n, [[2] * 8, [3] * 6]) for n in prompts]
        (pack,) = pack_groups(groups, token_budget=1000)
        layout = BlockLayout(pack.segment_T, pack.prompt_T, pack.position_ids_T, pack.layout.longest)
        for window, dtype, trained in product((None, 50), (torch.float32, torch.bfloat16), (False, True)):
            query, key = (torch.ones(1, heads, len(pack.segment_T), 16, dtype=dtype) for heads in (6, 2))
            with torch.set_grad_enabled(trained):
                query.requires_grad_(trained)
                mixed = layout.attend(query, key, key, scale=0.25, softcap=30.0, window=window)
            assert mixed.requires_grad == trained
    assert not counters["graph_break"]
    # Twice each, for one block and for more: 8 of the attention, and of the mask 2, made by whoever comes first.
    assert len(graphs) == 2 * (8 + 2)


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
