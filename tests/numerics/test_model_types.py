"""Types that keep scales, caps, lengths or their text part where others do not: packed is each sequence alone.

The right value is always that of plain `transformers` with eager attention, one sequence at a time, in float32.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from numerics.tiny_models import SHAPE, gradients, plain_logps

from pipeline.errors import UnsupportedModelError
from pipeline.model.check import check_before_work, check_model
from pipeline.model.distributed import World, own_packs
from pipeline.model.logprobs import pack_sums, sequence_logps
from pipeline.model.model_config import length_boundaries, logit_scale, named_lengths
from pipeline.packing.packing import TokenGroup, pack_groups
from pipeline.packing.text_decoder import text_decoder

# Float32 sums of up to 44 log-probabilities near 5 nats, computed in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-4}
# Gradients pass through two softmaxes and add up over a whole pack.
CLOSE_GRADIENT = {"rtol": 1e-3, "atol": 2e-4}
CONTEXT = 64
BUDGET = 256
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 8.0, 16.0, 32.0],
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
VISION = {
    "hidden_size": 16, "image_size": 28, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "patch_size": 14,
}  # fmt: skip
GEMMA3_TEXT = {**SHAPE, "pad_token_id": 0, "head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention"] * 2}

TYPES: dict[str, Callable[[], Any]] = {
    "phi3 longrope": lambda: hf.Phi3Config(
        **{**SHAPE, "pad_token_id": 0}, original_max_position_embeddings=16, rope_parameters=LONGROPE
    ),
    "phimoe longrope": lambda: hf.PhimoeConfig(
        **SHAPE, **EXPERTS, original_max_position_embeddings=16, sliding_window=None,
        rope_parameters={**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3},
    ),
    "llama dynamic": lambda: hf.LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    ),
    "gemma2 caps": lambda: hf.Gemma2Config(
        **SHAPE, head_dim=8, sliding_window=9, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3 wrapper": lambda: hf.Gemma3Config(
        text_config=GEMMA3_TEXT, vision_config=VISION, mm_tokens_per_image=4, boi_token_index=56, eoi_token_index=57,
        image_token_index=58,
    ),
    "gemma3 text": lambda: hf.Gemma3TextConfig(**GEMMA3_TEXT),
    "llama4": lambda: hf.Llama4TextConfig(
        **{**SHAPE, "pad_token_id": 0}, **EXPERTS, head_dim=8, intermediate_size_mlp=48, attention_chunk_size=CONTEXT,
        interleave_moe_layer_step=1, no_rope_layers=[1, 0],
    ),
    "granite": lambda: hf.GraniteConfig(
        **SHAPE, logits_scaling=8.0, attention_multiplier=0.3, embedding_multiplier=3.0, residual_multiplier=0.5
    ),
    "granitemoe": lambda: hf.GraniteMoeConfig(**SHAPE, **EXPERTS, logits_scaling=4.0),
    "cohere": lambda: hf.CohereConfig(**{**SHAPE, "pad_token_id": 0}, logit_scale=0.25),
    "cohere2": lambda: hf.Cohere2Config(**{**SHAPE, "pad_token_id": 0}, logit_scale=0.5, sliding_window=5),
    "hyperclovax": lambda: hf.HyperCLOVAXConfig(**SHAPE, logits_scaling=0.5),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=61, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "opt": lambda: hf.OPTConfig(
        vocab_size=61, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, word_embed_proj_dim=32, init_std=0.2,
    ),
}  # fmt: skip


def build(name: str) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(TYPES[name](), attn_implementation="eager").eval()


def groups_around(*lengths: int) -> list[TokenGroup]:
    """Prompts with a short answer and one that makes the whole so many tokens long, and a short prompt."""
    generator = torch.Generator().manual_seed(7)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 56, (count,), generator=generator).tolist()

    return [
        *(TokenGroup(f"to {length}", ids(4), [ids(2), ids(length - 4)]) for length in lengths),
        TokenGroup("short", ids(3), [ids(3), ids(1)]),
    ]


@pytest.mark.parametrize("name", TYPES)
def test_a_pack_of_short_and_long_is_each_alone_in_value_and_gradient(name: str) -> None:
    model, groups = build(name), groups_around(9, 10, 11, 16, 17, 18, 40)
    alone = torch.cat([plain_logps(model, group) for group in groups])
    weights = torch.linspace(-1, 1, len(alone))
    (alone * weights).sum().backward()
    expected = gradients(model)
    (pack,) = pack_groups(groups, 10_000, length_boundaries(model.config))
    assert sorted(pack.groups) == list(range(len(groups)))
    flat = dict(zip(pack.groups, pack_sums(model, pack).split(pack.candidates), strict=True))
    packed = torch.cat([flat[index] for index in range(len(groups))])
    torch.testing.assert_close(packed, alone, **CLOSE)
    (packed * weights).sum().backward()
    torch.testing.assert_close(gradients(model), expected, **CLOSE_GRADIENT)


@pytest.mark.parametrize("name", TYPES)
def test_these_types_pass_the_check_before_work(name: str) -> None:
    model = build(name)
    own = text_decoder(model).config._attn_implementation
    assert check_before_work(model, CONTEXT, BUDGET) == []
    check_model(model)
    assert text_decoder(model).config._attn_implementation == own


def test_longrope_would_be_wrong_in_one_pass() -> None:
    """What the classes of length are for: without them the short answers are off by far."""
    model, groups = build("phi3 longrope"), groups_around(40)
    alone = torch.cat([plain_logps(model, group) for group in groups]).detach()
    (pack,) = pack_groups(groups, 1000)
    assert length_boundaries(model.config) == (16,)
    with torch.no_grad():
        assert (pack_sums(model, pack) - alone).abs().max() > 0.1


@pytest.mark.parametrize("budget", [40, 90, 10_000])
def test_packs_of_classes_hold_every_answer_once_however_they_are_split(budget: int) -> None:
    model, groups = build("phi3 longrope"), groups_around(16, 17, 30)
    found = sequence_logps(model, groups, budget)
    for group, logps in zip(groups, found, strict=True):
        assert logps == pytest.approx(plain_logps(model, group).tolist(), rel=1e-5, abs=1e-4)


def test_squares_of_a_pack_in_parts_are_in_the_order_of_its_tokens() -> None:
    from pipeline.model.logprobs import pack_logps

    model, groups = build("phi3 longrope"), groups_around(20)
    (pack,) = pack_groups(groups, 1000, length_boundaries(model.config))
    with torch.no_grad():
        _, squares_N = pack_logps(model, pack, squares=True)
        expected = []
        for group in (groups[index] for index in pack.groups):
            for answer in group.candidate_token_ids:
                ids = torch.tensor([[*group.prompt_token_ids, *answer]])
                logps = model(input_ids=ids).logits[0, len(group.prompt_token_ids) - 1 : -1].log_softmax(-1)
                expected.append((2 * logps).logsumexp(-1))
    torch.testing.assert_close(squares_N, torch.cat(expected), **CLOSE)


def test_several_ranks_and_classes_of_length_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"LongRoPE.*devices\.trainer_ranks be 1"):
        own_packs(groups_around(20), 100, World(0, 2), (16,))


def test_a_type_that_looks_at_the_place_in_the_pack_is_refused_with_the_pack_that_is_exact() -> None:
    """Llama 4 scales queries without rotary positions by their index in the pass, from ``floor_scale`` tokens on."""
    config = TYPES["llama4"]()
    config.floor_scale, config.attn_scale = 100, 1.0
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert check_before_work(model, CONTEXT, 100) == []
    with pytest.raises(UnsupportedModelError, match=r"differ by.*update\.token_budget to 100 or less"):
        check_before_work(model, CONTEXT, 101)


class Dimmed(hf.LlamaForCausalLM):
    """Changes its logits in a way that no configuration names."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output


class Forgetful(hf.LlamaForCausalLM):
    """Adds to its logits beyond eight tokens: it looks at the whole pass."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        if input_ids.shape[1] > self.config.sliding_window:
            output.logits = output.logits * 0.5
        return output


def test_logits_that_are_changed_unnamed_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Dimmed.*differ by.*use another model"):
        check_model(Dimmed(hf.LlamaConfig(**SHAPE)))


def test_what_begins_at_a_named_length_is_found_and_the_remedy_is_below_it() -> None:
    config = hf.LlamaConfig(**SHAPE)
    config.sliding_window = 8
    torch.manual_seed(0)
    model = Forgetful(config)
    check_model(model)
    assert named_lengths(config)[8] == "sliding_window"
    assert check_before_work(model, 8, BUDGET) == []
    with pytest.raises(UnsupportedModelError, match=r"8 tokens \(sliding_window\) agree: set sampling\.context to 8"):
        check_before_work(model, 9, BUDGET)


def test_a_length_that_takes_too_long_to_try_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.model.check.LONGEST_PROBE", 15)
    assert check_before_work(build("phi3 longrope"), CONTEXT, BUDGET) == [
        "original_max_position_embeddings 16",
        "max_position_embeddings 64",
    ]


@pytest.mark.parametrize(
    "config",
    [
        hf.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4),
        hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=1, n_head=4, initializer_range=0.2),
        hf.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"], conv_L_cache=3),
        hf.GptOssConfig(**SHAPE, **EXPERTS, head_dim=8, sliding_window=8),
        hf.XLNetConfig(vocab_size=61, d_model=32, n_layer=1, n_head=4, d_inner=32),
    ],
    ids=lambda config: config.model_type,
)
def test_types_that_cannot_be_packed_are_refused_by_name(config: Any) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))  # sinks begin at zero or unset, and would change nothing
    with pytest.raises(UnsupportedModelError, match=type(model).__name__):
        check_before_work(model, CONTEXT, BUDGET)


@pytest.mark.parametrize(("name", "scale"), [("granite", 1 / 8), ("cohere", 0.25), ("hyperclovax", 0.5), ("gpt2", 1.0)])
def test_the_scale_of_the_logits(name: str, scale: float) -> None:
    assert logit_scale(build(name).config) == scale
