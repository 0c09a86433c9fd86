"""LoRA (arXiv:2106.09685) through peft: the base stays as it is, and a pair of thin matrices a layer is trained.

A round's checkpoint is the adapter alone, in peft's format; the base is a checkpoint of its own. The sampler, and
whatever else wants one model, gets the two merged: ``W + scale * B @ A``, computed tensor by tensor in float32.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from pipeline.config import LoraConfig
from pipeline.errors import ConfigError
from pipeline.model.checkpoint_files import SMALL_FILES, name_dtype, stored_dtype, weight_files
from pipeline.model.distributed import full_tensor, spread_like, world_of
from pipeline.model.lora_targets import find_targets
from pipeline.model.weight_names import Files, Group, WeightNames, weightless

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class Adapter:
    """The adapter of a model, which carries it from here on, and trains nothing else.

    The model may be spread over several ranks afterwards; all of them then call the same methods.

    Args:
        seed: of the adapter's first matrices; the second ones are zero, so that it changes nothing yet.

    Raises:
        ConfigError: the model has no module of the names that the recipe gives, or none that can be adapted.
    """

    def __init__(self, model: PreTrainedModel, config: LoraConfig, *, seed: int) -> None:
        settings = PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            use_rslora=config.rank_stabilised,
            target_modules=find_targets(model, config.target_modules),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._peft: PeftModel = get_peft_model(model, settings)
            except ValueError as error:
                raise ConfigError(
                    f"update.lora.target_modules {config.target_modules} do not fit the policy: {error}"
                ) from error
        if self._peft.peft_config["default"].target_parameters:
            raise ConfigError(
                f"update.lora.target_modules {config.target_modules} would take the experts of {type(model).__name__}, "
                "which are stacked in one tensor a layer, and no adapter goes there: name layers of attention"
            )
        self._model = model
        # Without the weights of the base's embeddings, which peft adds if they are adapted.
        first = get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        self._first = {name: tensor.clone() for name, tensor in first.items()}
        self._scale = _scale(vars(settings))

    def reset(self) -> None:
        """Goes back to the adapter that changes nothing."""
        self._put(self._first)

    def load(self, directory: Path) -> None:
        """Puts a saved adapter in place.

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
        """Writes the adapter and the tokenizer as peft and vLLM open them; the same bytes for the same weights."""
        world = world_of(self._model)
        weights = None
        if world.size > 1:
            weights = {name: full_tensor(weight.detach()).cpu() for name, weight in self._weights()}
        if not world.is_main:
            return
        self._peft.save_pretrained(
            str(directory), safe_serialization=True, state_dict=weights, save_embedding_layers=False
        )
        (directory / "README.md").unlink(missing_ok=True)
        path = directory / ADAPTER_CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        # A set in peft, whose order changes from process to process, and a path that means nothing elsewhere.
        config |= {"target_modules": sorted(config["target_modules"]), "base_model_name_or_path": None}
        path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        tokenizer.save_pretrained(directory)

    def changes(self) -> "Changes":
        """Gives what the adapter changes, in float32 and in main memory; of several ranks all call it."""
        weights = {name: full_tensor(weight.detach()).cpu() for name, weight in self._weights()}
        return Changes({_without_adapter_name(name): weight for name, weight in weights.items()}, self._scale)

    def _put(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights():
                weight.copy_(spread_like(tensors[_without_adapter_name(name)], weight))

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Lists the adapter's weights, or this rank's part of them, by peft's names."""
        return ((_PREFIX + name, weight) for name, weight in self._model.named_parameters() if ".lora_" in name)


def _without_adapter_name(name: str) -> str:
    """Turns the name of an adapter's weight in memory into that in a file."""
    return re.sub(r"\.default(?=\.|$)", "", name)


class Changes:
    """What an adapter adds to the weights of a model, by their names in memory.

    Args:
        tensors: the adapter's weights by their names in a file.
        scale: factor of each change.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], scale: float) -> None:
        self._matrices, self._scale = _matrices(tensors), scale

    def keys(self) -> Set[str]:
        """Returns the names of the weights that are changed."""
        return self._matrices.keys()

    def added(self, model: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Gives a weight of the model with its change; the weight itself if it has none.

        The sum is not in a base's bfloat16: the trainer computes with it, and so shall whoever has the two merged.
        """
        if name not in self._matrices:
            return weight
        narrow, wide = self._matrices[name]
        change = self._scale * (wide @ narrow)
        module = model.get_submodule(name.removesuffix(".weight"))
        # Both keep their weight as [inputs, outputs]: embeddings, and transformers' Conv1D, of GPT-2.
        turned = isinstance(module, torch.nn.Embedding | Conv1D)
        return (weight.float() + (change.T if turned else change)).to(torch.promote_types(weight.dtype, torch.float32))


def is_adapter(directory: Path) -> bool:
    """Says whether a checkpoint is an adapter, and not a whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


def saved_rank(directory: Path) -> int:
    """Returns the rank of a saved adapter."""
    return int(_settings(directory)["r"])


def merge(base: Path, adapter: Path, target: Path) -> Path:
    """Merges base and adapter into a checkpoint in ``target``, which it replaces; the model never has all its weights.

    Raises:
        ConfigError: the adapter changes a weight that the base does not have.
        UnsupportedModelError: transformers cannot save a changed weight under the names that the base has.
    """
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for pattern in SMALL_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, target / path.name)
    merging = _Merging(base, adapter)
    for path in weight_files(base):
        tensors = load_file(path)
        for name in tensors:
            tensors[name] = merging.changed(name, tensors[name])
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    if stored_dtype(target) != stored_dtype(base):
        name_dtype(target, stored_dtype(target))
    return target


class _Merging:
    """The tensors of a base that an adapter changes, by their names in the files.

    Raises:
        ConfigError: the adapter changes a weight that the base does not have.
    """

    def __init__(self, base: Path, adapter: Path) -> None:
        self._model, self._files = weightless(base), Files(weight_files(base))
        self._names = WeightNames(self._model, self._files.shapes)
        self._changes = Changes(load_file(adapter / _ADAPTER), _scale(_settings(adapter)))
        self._groups: dict[str, Group] = {}
        shapes: set[str] = set()
        for group in self._names.groups:
            weights = self._names.shapes(group)
            shapes |= weights.keys()
            if weights.keys() & self._changes.keys():
                self._groups |= dict.fromkeys(group.names, group)
        if unknown := self._changes.keys() - shapes:
            raise ConfigError(
                f"the adapter in {adapter} changes {min(unknown)}, which the base in {base} does not have"
            )
        self._done: dict[str, torch.Tensor] = {}

    def changed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Gives the tensor of this name in the files with the adapter's change; the tensor itself if there is none."""
        group = self._groups.get(name)
        if group is None:
            return tensor
        if name not in self._done:
            weights = self._names.in_memory(group, self._files.read(group.names))
            self._done |= self._names.in_files(
                group, {weight: self._changes.added(self._model, weight, value) for weight, value in weights.items()}
            )
        return self._done.pop(name).contiguous()


def _settings(adapter: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return found


def _scale(settings: Mapping[str, Any]) -> float:
    """Computes the factor of an adapter's change of the weights, from its configuration in peft's format."""
    rank: int = settings["r"]
    alpha: float = settings["lora_alpha"]
    return alpha / (rank**0.5 if settings["use_rslora"] else rank)


def _matrices(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Finds both matrices of each weight that the adapter changes: A, ``[rank, inputs]``, and B, ``[outputs, rank]``.

    Those of embeddings are named ``MODULE.lora_embedding_A``, and all others ``MODULE.lora_A.weight``.
    """
    found = {}
    for name, narrow in tensors.items():
        if match := re.fullmatch(r"(.+)\.lora_(embedding_)?A(\.weight)?", name):
            module, kind, end = match.groups(default="")
            wide = tensors[f"{module}.lora_{kind}B{end}"]
            found[f"{module.removeprefix(_PREFIX)}.weight"] = (narrow.float(), wide.float())
    return found
