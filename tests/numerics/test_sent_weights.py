"""What a sampler gets out of the trainer's memory is what it would read from the checkpoint, to the bit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.tiny_models import BUILDERS, SHAPE, build
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import LoraConfig
from pipeline.model.checkpoint_files import weight_files, weight_shapes
from pipeline.model.lora import Adapter, merge
from pipeline.model.policy import load_policy, save_policy
from pipeline.model.sampler_copy import sampler_copy
from pipeline.model.sent_weights import SavedLayout, SentWeights
from pipeline.model.shared_memory import SharedPiece, read_piece
from pipeline.model.weight_pieces import WantedWeights
from support.tiny import tiny_tokenizer

FEW_BYTES = 5000
"""Far less than a layer has: the tensors of one layer come in several pieces."""


def saved(model: Any, directory: Path) -> Path:
    model.generation_config.eos_token_id = 2  # as the tokenizer's, also of GPT-2
    save_policy(model, tiny_tokenizer(61), directory)
    return directory


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def wanted(directory: Path, precision: Any = "float32") -> WantedWeights:
    return WantedWeights(weight_shapes(directory), precision)


def move(model: Any) -> None:
    """Trains the model, as far as this matters: all that learns is another number now (seed 1)."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.1)


def received(sent: SentWeights) -> dict[str, torch.Tensor]:
    """All pieces, each read while the one before is still mapped."""
    found: dict[str, torch.Tensor] = {}
    for number in range(len(sent)):
        written = SharedPiece(sent.piece(number))
        for name, tensor in read_piece(written.piece):
            assert name not in found
            found[name] = tensor
        written.close()
    return found


def assert_same(found: dict[str, torch.Tensor], expected: Iterable[tuple[str, torch.Tensor]]) -> None:
    expected = dict(expected)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", BUILDERS)
def test_a_trained_model_is_sent_as_its_checkpoint_has_it(name: str, tmp_path: Path) -> None:
    start = saved(build(name), tmp_path / "start")
    model, tokenizer = load_policy(start, device="cpu")
    layout = SavedLayout.of(model, start)
    move(model)
    save_policy(model, tokenizer, tmp_path / "trained")
    read = sampler_copy(tmp_path / "trained", tmp_path / "copy")  # with a head of its own, if there is a place for it
    sent = SentWeights(layout, wanted(read), piece_bytes=FEW_BYTES)
    assert sent.fit
    assert len(sent) > 3
    found = received(sent)
    assert_same(found, tensors_of(read).items())
    lower = received(SentWeights(layout, wanted(read, "bfloat16")))
    assert_same(lower, ((each, tensor.bfloat16()) for each, tensor in tensors_of(read).items()))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt"])
def test_an_adapter_is_sent_merged_as_its_copy_on_disk_would_be(name: str, stored: torch.dtype, tmp_path: Path) -> None:
    """Also on a base whose file is in bfloat16: what the adapter changes is float32 there, and the rest as it was."""
    base = saved(build(name).to(stored), tmp_path / "base")
    model, tokenizer = load_policy(base, device="cpu")
    adapter = Adapter(model, LoraConfig(rank=4, alpha=8), seed=3)
    layout = SavedLayout.of(model, base)
    move(model)
    adapter.save(tokenizer, tmp_path / "adapter")
    read = sampler_copy(merge(base, tmp_path / "adapter", tmp_path / "merged"), tmp_path / "copy")
    expected = tensors_of(read)
    assert any(not torch.equal(tensor, expected[each]) for each, tensor in tensors_of(base).items())
    sent = SentWeights(layout, wanted(read, None), adapter, piece_bytes=FEW_BYTES)
    assert sent.fit
    assert_same(received(sent), expected.items())
    as_float = received(SentWeights(layout, wanted(read), adapter))
    assert_same(as_float, ((each, tensor.float()) for each, tensor in expected.items()))


def test_a_sampler_of_another_shape_gets_nothing(tmp_path: Path) -> None:
    start = saved(build("llama"), tmp_path / "start")
    model, _ = load_policy(start, device="cpu")
    other = saved(LlamaForCausalLM(LlamaConfig(**SHAPE | {"intermediate_size": 40})), tmp_path / "other")
    assert not SentWeights(SavedLayout.of(model, start), wanted(other)).fit
    deeper = saved(LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": 3})), tmp_path / "deeper")
    assert not SentWeights(SavedLayout.of(model, start), wanted(deeper)).fit


def test_a_piece_cannot_be_changed_and_outlives_its_writer() -> None:
    """An odd number of bytes before a tensor of wider numbers, and one without any."""
    tensors = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.randn(2, 5), "c": torch.zeros(0, 4)}
    written = SharedPiece(((name,), tensor) for name, tensor in tensors.items())
    found = dict(read_piece(written.piece))
    with pytest.raises(OSError, match="not permitted"):
        (Path("/proc") / str(written.piece.process) / "fd" / str(written.piece.descriptor)).write_bytes(b"else")
    written.close()
    assert_same(found, tensors.items())
    with pytest.raises(OSError, match="No such file"):
        dict(read_piece(written.piece))
