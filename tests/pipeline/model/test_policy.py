"""Policies on disk: what is saved is what is loaded, and damage is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from pipeline.errors import ConfigError
from pipeline.model.checkpoint_files import stored_dtype, weight_shapes
from pipeline.model.policy import (
    load_policy,
    load_tokenizer,
    load_weights,
    max_context,
    round_weights,
    save_policy,
)
from support.tiny import tiny_llama, tiny_tokenizer

IDS_B_T = torch.tensor([[1, 5, 6, 7, 2], [1, 9, 8, 30, 31]])


def logits(directory: Path) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(directory)(input_ids=IDS_B_T).logits


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source", chat_template=True)
    model, tokenizer = load_policy(source, device="cpu")
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    save_policy(model, tokenizer, tmp_path / "saved")
    again, tokenizer_again = load_policy(tmp_path / "saved", device="cpu")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, again.state_dict()[name])
    messages = [{"role": "user", "content": "w1 w2"}]
    assert tokenizer_again.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_master_weights_are_float32_whatever_the_checkpoint_holds(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    model, tokenizer = load_policy(directory, device="cpu", precision="bfloat16")
    save_policy(model, tokenizer, tmp_path / "half")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    loaded, _ = load_policy(tmp_path / "half", device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_half_precision_is_the_rounded_policy(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    """Half the bytes, its configuration says so, and who loads it has what `round_weights` makes of the model."""
    model, tokenizer = load_policy(tiny_llama(tmp_path / "source", tied=tied), device="cpu")
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_policy(model, tokenizer, tmp_path / "whole", dtype=torch.float32)
    save_policy(model, tokenizer, tmp_path / "half", dtype=dtype)
    assert all(torch.equal(tensor, exact[name]) for name, tensor in model.state_dict().items())
    assert (stored_dtype(tmp_path / "whole"), stored_dtype(tmp_path / "half")) == (torch.float32, dtype)
    sizes = [sum(t.nbytes for t in load_file(tmp_path / n / "model.safetensors").values()) for n in ("whole", "half")]
    assert sizes[0] == 2 * sizes[1] == 4 * sum(weight.numel() for weight in model.parameters())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == dtype
    loaded, _ = load_policy(tmp_path / "half", device="cpu")
    round_weights(model, dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, exact[name].to(dtype).float())
        assert torch.equal(tensor, loaded.state_dict()[name])
        assert loaded.state_dict()[name].dtype == torch.float32
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ([torch.bfloat16, torch.bfloat16], torch.bfloat16),
        ([torch.float16, torch.int64], torch.float16),
        ([torch.bfloat16, torch.float32], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
    ],
)
def test_precisions_that_are_mixed_count_as_float32(
    tmp_path: Path, kinds: list[torch.dtype], found: torch.dtype
) -> None:
    """In which all of them are exact; whole numbers, such as those of a buffer, do not count."""
    for row, kind in enumerate(kinds):
        save_file({f"w{row}": torch.ones(2, dtype=kind)}, tmp_path / f"{row}.safetensors")
    assert stored_dtype(tmp_path) == found


@pytest.mark.parametrize(
    "defaults", [{"temperature": 0.9, "top_p": 0.6}, {"num_return_sequences": 3}, {"do_sample": True, "top_k": 7}]
)
def test_sampling_defaults_of_a_file_never_keep_it_from_being_saved(tmp_path: Path, defaults: dict[str, Any]) -> None:
    directory = tiny_llama(tmp_path / "source")
    ends = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    (directory / "generation_config.json").write_text(json.dumps({**ends, **defaults}))
    model, tokenizer = load_policy(directory, device="cpu")
    save_policy(model, tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert written.items() >= ends.items()
    assert ("do_sample" in defaults) == ("top_k" in written)  # what is valid stays as it is
    load_policy(tmp_path / "saved", device="cpu")


def test_a_cap_on_attention_scores_is_kept_by_plain_attention_alone(tmp_path: Path) -> None:
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(Gemma2Config(**shape, attn_logit_softcapping=1.0)).save_pretrained(tmp_path)
    tiny_tokenizer(64).save_pretrained(tmp_path)
    model, _ = load_policy(tmp_path, device="cpu")
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS_B_T).logits, eager(input_ids=IDS_B_T).logits)


def test_weights_are_replaced_in_place_or_not_at_all(tmp_path: Path) -> None:
    model, _ = load_policy(tiny_llama(tmp_path / "a", seed=0), device="cpu")
    parameters = dict(model.named_parameters())
    target = tiny_llama(tmp_path / "b", seed=1)
    load_weights(model, target)
    expected = load_file(target / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, expected[name])
    with pytest.raises(ConfigError, match=r"'model\.embed_tokens\.weight' is \(80, 64\), not \(64, 64\)"):
        load_weights(model, tiny_llama(tmp_path / "c", vocab=80))
    tensors = load_file(target / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, target / "model.safetensors")
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' is missing"):
        load_weights(model, target)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no directory '/nowhere/policy'"):
        load_policy("/nowhere/policy", device="cpu")
    # Without a network the hub cannot be reached; with one it has no such model. Either way nothing is tried for long.
    with pytest.raises(ConfigError, match=r"'rondo-tests/no-such-policy' is neither a local directory nor"):
        load_tokenizer("rondo-tests/no-such-policy")
    with pytest.raises(ConfigError, match=r"cannot be loaded"):
        max_context(tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    whole = tiny_llama(tmp_path / "whole")
    tensors = load_file(whole / "model.safetensors")

    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"cut' cannot be loaded"):
        load_policy(cut, device="cpu")
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        weight_shapes(cut)

    lacking = Path(shutil.copytree(whole, tmp_path / "lacking"))
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, lacking / "model.safetensors"
    )
    with pytest.raises(ConfigError, match=r"lacks \['lm_head\.weight'\]"):
        load_policy(lacking, device="cpu")

    pickled = Path(shutil.copytree(whole, tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save(tensors, pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickled' cannot be loaded"):
        load_policy(pickled, device="cpu")
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        weight_shapes(pickled)


def test_a_tokenizer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    wide = tiny_llama(tmp_path / "wide")
    tiny_tokenizer(65).save_pretrained(wide)
    with pytest.raises(ConfigError, match="has 65 tokens and its model 64"):
        load_policy(wide, device="cpu")

    endless = tiny_llama(tmp_path / "endless")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<unk>"
    tokenizer.save_pretrained(endless)
    with pytest.raises(ConfigError, match="ends texts with token 3, but the model's answers end with 2"):
        load_policy(endless, device="cpu")

    tokenizer.eos_token = None
    tokenizer.save_pretrained(endless)
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        load_tokenizer(endless)


def test_the_context_is_that_of_the_configuration(tmp_path: Path) -> None:
    assert max_context(tiny_llama(tmp_path, context=48)) == 48
