"""An adapter in place of all weights: the same function when it is merged, and the base never moves."""

import pytest
import torch
from numerics.test_update import SEED, SETTINGS, preferences, weights
from numerics.tiny_models import build, changed, token_groups
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.config import LoraConfig
from pipeline.dpo.ema import blend
from pipeline.dpo.update import Update, run_update
from pipeline.errors import ConfigError
from pipeline.model.logprobs import sequence_logps
from pipeline.model.lora import Adapter, merge
from pipeline.model.policy import load_weights
from support.tiny import tiny_tokenizer

CONFIG = LoraConfig(rank=4, alpha=8)
FAST = changed(SETTINGS, learning_rate=1e-2)
# Products of matrices added up in another order: some 1e-6 nats a token over about 9 tokens.
SAME = {"abs": 1e-4}


def adapted(name: str = "llama", config: LoraConfig = CONFIG):
    model = build(name)
    return model, Adapter(model, config, seed=3)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
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


def test_base_weights_load_below_an_adapter(tmp_path):
    other = build(seed=9)
    other.save_pretrained(tmp_path)
    model, _ = adapted()
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


def test_blend_is_the_weighted_mean(tmp_path):
    """0.75 * 8 + 0.25 * 4 = 7 for a weight of 8 in the average and of 4 in the policy."""
    for name, value in (("average", 8.0), ("policy", 4.0)):
        model = build()
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        model.save_pretrained(tmp_path / name)
    (tmp_path / "target").mkdir()
    blend(tmp_path / "average", tmp_path / "policy", tmp_path / "target", decay=0.75)
    blended = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert all(torch.equal(weight, torch.full_like(weight, 7.0)) for weight in blended.parameters())
