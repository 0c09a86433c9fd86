"""LoRA (arXiv:2106.09685) through peft: the base stays as it is, and a pair of thin matrices a layer is trained.

A round's checkpoint is the adapter alone, in peft's format; the base is a checkpoint of its own. The sampler, and
whatever else wants one model, gets the two merged: ``W + scale * B @ A``, computed tensor by tensor in float32.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import LoraConfig
from pipeline.errors import ConfigError
from pipeline.model.distributed import full_tensor, spread_like, world_of
from pipeline.model.policy import SMALL_FILES, weight_files

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class Adapter:
    """The adapter of a model, which carries it from here on, and trains nothing else.

    The model may be spread over several ranks afterwards; all of them then call the same methods.

    Args:
        seed: of the adapter's first matrices; the second ones are zero, so that it changes nothing yet.

    Raises:
        ConfigError: the model has no module of the names that the recipe gives.
    """

    def __init__(self, model: PreTrainedModel, config: LoraConfig, *, seed: int) -> None:
        targets = config.target_modules
        settings = PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            use_rslora=config.rank_stabilised,
            target_modules=list(targets) if targets else "all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._peft: PeftModel = get_peft_model(model, settings)
            except ValueError as error:
                raise ConfigError(f"update.lora.target_modules {targets} do not fit the policy: {error}") from error
        self._model = model
        self._first = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(self._peft).items()}
        self._scale = _scale(vars(settings))

    def reset(self) -> None:
        """Back to the adapter that changes nothing."""
        self._put(self._first)

    def load(self, directory: Path) -> None:
        """Put a saved adapter in place.

        Raises:
            ConfigError: it has another rank, another scale or other modules, and would be another policy here.
        """
        found = load_file(directory / _ADAPTER)
        shapes = {name: tensor.shape for name, tensor in found.items()}
        if shapes != {n: t.shape for n, t in self._first.items()} or _scale(_settings(directory)) != self._scale:
            raise ConfigError(
                f"the adapter in {directory} has another rank, another scale or other modules than update.lora asks "
                "for: keep update.lora as it was, or set it to null to go on with the merged weights"
            )
        self._put(found)

    def save(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        """Write the adapter and the tokenizer as peft and vLLM open them; the same bytes for the same weights."""
        world = world_of(self._model)
        weights = None
        if world.size > 1:
            weights = {name: full_tensor(weight.detach()).cpu() for name, weight in self._weights()}
        if not world.is_main:
            return
        self._peft.save_pretrained(str(directory), safe_serialization=True, state_dict=weights)
        (directory / "README.md").unlink(missing_ok=True)
        path = directory / ADAPTER_CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        # A set in peft, whose order changes from process to process, and a path that means nothing elsewhere.
        config |= {"target_modules": sorted(config["target_modules"]), "base_model_name_or_path": None}
        path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        tokenizer.save_pretrained(directory)

    def _put(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights():
                weight.copy_(spread_like(tensors[name.replace(".default.", ".")], weight))

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The adapter's weights, or this rank's part of them, by peft's names."""
        return ((_PREFIX + name, weight) for name, weight in self._model.named_parameters() if ".lora_" in name)


def is_adapter(directory: Path) -> bool:
    """Whether a checkpoint is an adapter, and not a whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


def merge(base: Path, adapter: Path, target: Path) -> Path:
    """A whole checkpoint of base and adapter in ``target``, which it replaces; the model is never built.

    Raises:
        ConfigError: the adapter changes a weight that the base does not have.
    """
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for pattern in SMALL_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, target / path.name)
    config = _settings(adapter)
    scale = _scale(config)
    changes = _changes(load_file(adapter / _ADAPTER))
    for path in weight_files(base):
        tensors = load_file(path)
        for name in tensors.keys() & changes.keys():
            narrow, wide = changes.pop(name)
            weight = tensors[name].float()
            change = scale * (wide @ narrow)
            # transformers' Conv1D, of GPT-2, keeps its weight as [inputs, outputs].
            tensors[name] = (
                (weight + (change.T if config["fan_in_fan_out"] else change)).to(tensors[name].dtype).contiguous()
            )
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    if changes:
        raise ConfigError(f"the adapter in {adapter} changes {min(changes)}, which the base in {base} does not have")
    return target


def _settings(adapter: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return found


def _scale(settings: Mapping[str, Any]) -> float:
    """The factor of an adapter's change of the weights, from its configuration in peft's format."""
    rank: int = settings["r"]
    alpha: float = settings["lora_alpha"]
    return alpha / (rank**0.5 if settings["use_rslora"] else rank)


def _changes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two matrices of each weight that the adapter changes: A, ``[rank, inputs]``, and B, ``[outputs, rank]``."""
    names = [name for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix(_PREFIX).replace(".lora_A", ""): (
            tensors[name].float(),
            tensors[name.replace(".lora_A", ".lora_B")].float(),
        )
        for name in names
    }
