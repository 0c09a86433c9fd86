"""An adapter in place of all weights: the same function when it is merged, and the base never moves."""

import pytest
import torch
from numerics.test_update import SEED, SETTINGS, preferences, weights
from numerics.tiny_models import SHAPE, build, changed, gradients, plain_logps, token_groups
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.config import LoraConfig
from pipeline.dpo.ema import blend
from pipeline.dpo.update import Update, run_update
from pipeline.errors import ConfigError
from pipeline.model.logprobs import pack_sums, sequence_logps
from pipeline.model.lora import Adapter, merge
from pipeline.model.policy import load_weights, round_weights, save_policy
from pipeline.packing.packing import pack_groups
from support.tiny import tiny_tokenizer

CONFIG = LoraConfig(rank=4, alpha=8)
FAST = changed(SETTINGS, learning_rate=1e-2)
# Products of matrices added up in another order: some 1e-6 nats a token over about 9 tokens.
SAME = {"abs": 1e-4}


def adapted(name: str = "llama", config: LoraConfig = CONFIG):
    model = build(name)
    return model, Adapter(model, config, seed=3)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "opt"])
@pytest.mark.parametrize("stabilised", [False, True])
def test_merged_equals_base_with_adapter(name, stabilised, tmp_path):
    """Trained, saved, merged tensor by tensor, and by peft itself: three ways to the same log-probabilities."""
    base = build(name)
    base.save_pretrained(tmp_path / "base")
    model, adapter = adapted(name, LoraConfig(rank=4, alpha=8, rank_stabilised=stabilised))
    groups = preferences(model)
    start = [list(group.reference_logps) for group in groups]
    assert run_update(model, groups, FAST, seed=SEED).first_loss == pytest.approx(0.6931472, abs=1e-5)
    adapter.save(tiny_tokenizer(), tmp_path / "adapter")
    trained = sequence_logps(model, groups, 200)
    assert any(abs(a - b) > 0.1 for row, old in zip(trained, start, strict=True) for a, b in zip(row, old, strict=True))
    whole = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"))
    for row, expected in zip(sequence_logps(whole, groups, 200), trained, strict=True):
        assert row == pytest.approx(expected, **SAME)
    by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    for row, expected in zip(sequence_logps(by_peft, groups, 200), trained, strict=True):
        assert row == pytest.approx(expected, **SAME)


def test_a_base_in_bfloat16_loses_nothing_when_it_is_merged(tmp_path):
    """The trainer computes with base and adapter in float32: so are they merged, and not in the base's precision."""
    model, adapter = adapted()
    round_weights(model, torch.bfloat16)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01, generator=torch.Generator().manual_seed(1))
    base = build()
    round_weights(base, torch.bfloat16)
    save_policy(base, tiny_tokenizer(), tmp_path / "base", dtype=torch.bfloat16)
    adapter.save(tiny_tokenizer(), tmp_path / "adapter")
    merged = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert whole.dtype == torch.float32
    groups = token_groups(6)
    for row, expected in zip(sequence_logps(whole, groups, 200), sequence_logps(model, groups, 200), strict=True):
        assert row == pytest.approx(expected, **SAME)  # rounded again, it would differ by 1e-2 and more


HEAD = {"llama": "lm_head", "gpt_neox": "lm_head", "mixtral": "lm_head"}
EMBEDDINGS = {"llama": "embed_tokens", "gpt_neox": "embed_in", "mixtral": "embed_tokens"}


@pytest.mark.parametrize("name", HEAD)
@pytest.mark.parametrize("part", ["head", "head and attention", "embeddings", "all three"])
def test_the_head_and_embeddings_learn_too(name, part, tmp_path):
    """Trained by packs, then by peft alone on the merged file and on base with adapter: the same log-probabilities."""
    attention = "query_key_value" if name == "gpt_neox" else "q_proj"
    targets = {
        "head": (HEAD[name],),
        "head and attention": (HEAD[name], attention),
        "embeddings": (EMBEDDINGS[name],),
        "all three": (HEAD[name], EMBEDDINGS[name], attention),
    }[part]
    base = build(name)
    base.save_pretrained(tmp_path / "base")
    model, adapter = adapted(name, LoraConfig(rank=4, alpha=8, target_modules=targets))
    groups = preferences(model)
    before = weights(model)
    assert run_update(model, groups, FAST, seed=SEED).first_loss == pytest.approx(0.6931472, abs=1e-5)
    moved = {weight for weight, tensor in weights(model).items() if not torch.equal(tensor, before[weight])}
    for target in targets:
        assert any(f".{target}.lora_" in f".{weight}" for weight in moved), f"{target} has not learnt"
    adapter.save(tiny_tokenizer(), tmp_path / "adapter")
    trained = sequence_logps(model, groups, 200)
    adapter.reset()
    adapter.load(tmp_path / "adapter")
    assert sequence_logps(model, groups, 200) == trained
    whole = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"))
    by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter")
    for other in (whole, by_peft):
        for group, expected in zip(groups, trained, strict=True):
            assert plain_logps(other, group).tolist() == pytest.approx(expected, **SAME)


def test_the_gradient_of_the_heads_adapter_is_that_of_autograd():
    """peft's own forward pass and a plain softmax, against the projection in chunks, which never calls the head."""
    model, _ = adapted(config=LoraConfig(rank=4, alpha=8, target_modules=("lm_head", "q_proj")))
    torch.manual_seed(0)
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(weight, std=0.1)
    groups = token_groups(5)
    torch.cat([plain_logps(model, group) for group in groups]).sum().backward()
    expected = gradients(model)
    for pack in pack_groups(groups, 60):
        pack_sums(model, pack).sum().backward()
    found = gradients(model)
    assert {name for name in found if "lm_head" in name} == {f"lm_head.lora_{letter}.default.weight" for letter in "AB"}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_refused_as_targets():
    """An adapter of either would, merged, change the other one too."""
    torch.manual_seed(0)
    for target in ("lm_head", "embed_tokens"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
        with pytest.raises(ConfigError, match=rf"target_modules names '{target}', and .* are one tensor"):
            Adapter(model, LoraConfig(rank=4, target_modules=("q_proj", target)), seed=3)


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("mixtral", "gate_up_proj", "no module of that name; its experts are stacked in one tensor"),
        ("mixtral", "w1", "no module of that name; its experts are stacked"),
        ("mixtral", "gate", "is a MixtralTopKRouter: adapters go with linear layers"),
        ("qwen3_moe", "experts", "is a Qwen3MoeExperts: adapters go with linear layers"),
        ("qwen3_moe", "down_proj", "would take the experts of Qwen3MoeForCausalLM"),
        ("llama", "norm", "is a LlamaRMSNorm: adapters go with linear layers"),
    ],
)
def test_what_no_adapter_goes_on_is_refused(name, target, why):
    """The second to last is a dense layer's, which peft takes for the experts'."""
    with pytest.raises(ConfigError, match=rf"update\.lora\.target_modules .*{why}"):
        adapted(name, LoraConfig(rank=4, target_modules=("q_proj", target)))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_gets_adapters_on_attention(name):
    model, _ = adapted(name)
    found = {weight.rpartition(".lora_")[0] for weight in weights(model) if ".lora_" in weight}
    parts = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qkvo"]
    assert found == set(parts)


def test_the_base_never_moves_and_reset_brings_it_back():
    model, adapter = adapted()
    plain = build()
    groups = token_groups(4)
    before = {name: weight for name, weight in weights(model).items() if ".lora_" not in name}
    run_update(model, preferences(model), FAST, seed=SEED)
    for name, weight in before.items():
        assert torch.equal(weight, dict(model.named_parameters())[name])
    adapter.reset()
    for row, expected in zip(sequence_logps(model, groups, 200), sequence_logps(plain, groups, 200), strict=True):
        assert row == pytest.approx(expected, **SAME)


def test_saved_bytes_follow_from_the_weights(tmp_path):
    for name in ("one", "two"):
        adapted()[1].save(tiny_tokenizer(), tmp_path / name)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "one" / "adapter_config.json").read_text()


def test_load_restores_and_refuses_another_rank_or_scale(tmp_path):
    model, adapter = adapted()
    run_update(model, preferences(model), FAST, seed=SEED)
    adapter.save(tiny_tokenizer(), tmp_path)
    trained = weights(model)
    adapter.reset()
    adapter.load(tmp_path)
    torch.testing.assert_close(weights(model), trained, rtol=0, atol=0)
    # With another alpha the shapes fit, and the same matrices would be another policy than the one that sampled.
    for other in (LoraConfig(rank=2), LoraConfig(rank=4, alpha=64), LoraConfig(rank=4, alpha=8, rank_stabilised=True)):
        with pytest.raises(ConfigError, match=r"another rank, another scale or other modules than update\.lora"):
            adapted(config=other)[1].load(tmp_path)


def test_unknown_modules_are_refused():
    with pytest.raises(ConfigError, match=r"update\.lora\.target_modules .*nowhere.* do not fit"):
        adapted(config=LoraConfig(target_modules=("nowhere",)))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mixtral"])
def test_base_weights_load_below_an_adapter(name, tmp_path):
    other = build(name, seed=9)
    other.save_pretrained(tmp_path)
    model, _ = adapted(name)
    load_weights(model, tmp_path)
    groups = token_groups(3)
    for row, expected in zip(sequence_logps(model, groups, 200), sequence_logps(other, groups, 200), strict=True):
        assert row == pytest.approx(expected, **SAME)


def test_an_interrupted_adapter_goes_on_to_the_bit(tmp_path):
    whole, _ = adapted()
    run_update(whole, preferences(whole), FAST, seed=SEED)
    model, _ = adapted()
    update = Update(model, preferences(model), FAST, seed=SEED)
    update.run(lambda row: update.save(tmp_path) if row.step == 0 else None)
    again, _ = adapted()
    rest = Update(again, preferences(again), FAST, seed=SEED)
    rest.load(tmp_path)
    rest.run()
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)
    assert (tmp_path / "weights.safetensors").stat().st_size < 50_000  # the adapter's weights alone


@pytest.mark.parametrize("shape", ["llama", "gpt_neox", "mixtral", "qwen3_moe"])
def test_blend_is_the_weighted_mean(shape, tmp_path):
    """0.75 * 8 + 0.25 * 4 = 7 for a weight of 8 in the average and of 4 in the policy."""
    for name, value in (("average", 8.0), ("policy", 4.0)):
        model = build(shape)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        model.save_pretrained(tmp_path / name)
    (tmp_path / "target").mkdir()
    blend(tmp_path / "average", tmp_path / "policy", tmp_path / "target", decay=0.75)
    blended = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert all(torch.equal(weight, torch.full_like(weight, 7.0)) for weight in blended.parameters())


def test_an_average_of_policies_in_bfloat16_is_float32(tmp_path):
    """0.99 * 1 + 0.01 * 1.0078125 = 1.000078125: the next number above 1 in bfloat16 is 1.0078125."""
    for name, value in (("average", 1.0), ("policy", 1.0078125)):
        model = build()
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        save_policy(model, tiny_tokenizer(), tmp_path / name, dtype=torch.bfloat16)
    (tmp_path / "target").mkdir()
    blend(tmp_path / "average", tmp_path / "policy", tmp_path / "target", decay=0.99)
    blended = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype="auto")
    for weight in blended.parameters():
        # Float32 numbers lie 1.2e-7 apart there.
        torch.testing.assert_close(weight, torch.full_like(weight, 1.000078125), rtol=0, atol=2e-7)
