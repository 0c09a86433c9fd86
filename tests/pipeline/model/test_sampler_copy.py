"""The copy that the sampler loads: the same function, with an output head of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from pipeline.errors import UnsupportedModelError
from pipeline.model.checkpoint_files import weight_shapes
from pipeline.model.policy import load_policy, save_policy
from pipeline.model.sampler_copy import sampler_copy
from support.tiny import tiny_llama

IDS_B_T = torch.tensor([[1, 5, 6, 7, 2], [1, 9, 8, 30, 31]])


def logits(directory: Path) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(directory)(input_ids=IDS_B_T).logits


def test_an_untied_checkpoint_is_sampled_as_it_is(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "untied")
    assert sampler_copy(directory, tmp_path / "scratch") == directory
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
def test_the_copy_of_a_tied_checkpoint_has_a_head_of_its_own(tmp_path: Path, shard_size: str) -> None:
    tied = tiny_llama(tmp_path / "tied", tied=True, seed=4)
    if shard_size != "1GB":
        model = AutoModelForCausalLM.from_pretrained(tied)
        (tied / "model.safetensors").unlink()
        model.save_pretrained(tied, max_shard_size=shard_size)
        assert len(list(tied.glob("*.safetensors"))) > 1
    copy = sampler_copy(tied, tmp_path / "scratch")
    assert copy == tmp_path / "scratch"
    assert json.loads((copy / "config.json").read_text())["tie_word_embeddings"] is False
    shapes = weight_shapes(copy)
    assert shapes == weight_shapes(tied) | {"lm_head.weight": (64, 64)}
    # The same products of the same numbers: equal to the bit.
    assert torch.equal(logits(copy), logits(tied))
    load_policy(copy, device="cpu")


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_the_copy_keeps_a_head_that_the_file_has_beside_the_flag(tmp_path: Path, shard_size: str) -> None:
    """transformers takes a head of its own for what it is, whatever the flag says, and so must the sampler."""
    directory = tiny_llama(tmp_path / "source", seed=5)
    if shard_size != "1GB":
        model = AutoModelForCausalLM.from_pretrained(directory)
        (directory / "model.safetensors").unlink()
        model.save_pretrained(directory, max_shard_size=shard_size)
    right = logits(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    copy = sampler_copy(directory, tmp_path / "scratch")
    assert json.loads((copy / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits(copy), right)
    model, tokenizer = load_policy(directory, device="cpu")
    save_policy(model, tokenizer, tmp_path / "saved")
    assert torch.equal(logits(sampler_copy(tmp_path / "saved", tmp_path / "scratch")), right)


def test_a_second_copy_replaces_the_first(tmp_path: Path) -> None:
    first, second = tiny_llama(tmp_path / "1", tied=True, seed=1), tiny_llama(tmp_path / "2", tied=True, seed=2)
    sampler_copy(first, tmp_path / "scratch")
    (tmp_path / "scratch" / "stale.safetensors").write_bytes(b"left over")
    assert torch.equal(logits(sampler_copy(second, tmp_path / "scratch")), logits(second))
    assert not (tmp_path / "scratch" / "stale.safetensors").exists()


def test_a_tied_model_whose_embeddings_have_another_name_gets_a_head(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "gpt2")
    copy = sampler_copy(tmp_path / "gpt2", tmp_path / "scratch")
    index = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    head = load_file(copy / index["lm_head.weight"])
    assert list(head) == ["lm_head.weight"], "the rest is in the checkpoint, and is linked to"
    torch.testing.assert_close(head["lm_head.weight"], model.transformer.wte.weight.data, rtol=0, atol=0)


def test_a_tied_model_without_embeddings_in_its_files_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "a", tied=True)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["renamed"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"model\.embed_tokens\.weight"):
        sampler_copy(checkpoint, tmp_path / "scratch")
