"""Weights by their names in the files of a checkpoint, and by those in memory.

The two differ for some architectures: `transformers` renames weights, and stacks the experts of a layer in one tensor,
while it loads them, and takes that back while it saves. The rules are its own (``transformers.conversion_mapping``);
here they are applied to a few tensors at a time, so that a model is never in memory twice.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from pipeline.errors import ConfigError, UnsupportedModelError

Tensors = dict[str, torch.Tensor]
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What safetensors calls the types that a model which is trained here may have."""


@dataclass(frozen=True)
class Group:
    """Tensors of files that become one or several weights together.

    ``sources``: name in the files, and the pattern of the rule that takes it, which is None if there is no rule.
    """

    target: str
    sources: tuple[tuple[str, str | None], ...]

    @property
    def names(self) -> list[str]:
        """Lists the names in the files."""
        return [name for name, _ in self.sources]


class WeightNames:
    """The way between the files of a checkpoint and the weights of a model.

    Args:
        model: without weights, as `weightless` and `weightless_like` give it.
        files: names and shapes of the tensors in the files.
    """

    def __init__(self, model: Any, files: Mapping[str, tuple[int, ...]]) -> None:
        self.model, self.files = model, files
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._converters = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        prefix, expected = model.base_model_prefix, model.state_dict()
        sources: dict[str, list[tuple[str, str | None]]] = {}
        for name in sorted(files, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
            if target not in expected and name in expected:
                target, pattern = name, None
            sources.setdefault(target, []).append((name, pattern))
        self.groups = [Group(target, tuple(found)) for target, found in sources.items()]
        # What `transformers` takes back when it saves: the rules that it applied when it loaded.
        model._weight_conversions = [rule for rule in rules if rule.was_used()]

    def in_memory(self, group: Group, tensors: Tensors) -> Tensors:
        """Gives the group's tensors as the model holds them, by their names there.

        Raises:
            ConfigError: they do not go together, such as experts of several shapes.
        """
        pattern = group.sources[0][1]
        if pattern is None:
            return {group.target: tensors[group.sources[0][0]]}
        rule = deepcopy(self._converters[pattern])
        for name, source in group.sources:
            rule.add_tensor(group.target, name, source, tensors[name])
        try:
            converted = rule.convert(group.target, model=self.model, config=self.model.config)
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise ConfigError(
                f"the checkpoint's {group.names[0]} and others cannot be made '{group.target}' of a "
                f"{type(self.model).__name__} ({error}): fetch or save the checkpoint again"
            ) from error
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in converted.items()}

    def in_files(self, group: Group, weights: Tensors) -> Tensors:
        """Gives all weights of the group as the files hold them: the way back from `in_memory`.

        Raises:
            UnsupportedModelError: the rules lead to other names than those that the files have.
        """
        if group.sources[0][1] is None:
            return {group.sources[0][0]: weights[group.target]}
        tensors: Tensors = revert_weight_conversion(self.model, weights)
        if tensors.keys() != set(group.names):
            other = min(tensors.keys() ^ set(group.names))
            raise UnsupportedModelError(
                f"transformers does not save '{group.target}' of {type(self.model).__name__} under the names that it "
                f"reads ('{other}' is only among one of them): save the checkpoint anew with save_pretrained"
            )
        return tensors

    def shapes(self, *groups: Group) -> dict[str, tuple[int, ...]]:
        """Gives names and shapes in memory, of all groups unless some are named; no tensor is read."""
        found: dict[str, tuple[int, ...]] = {}
        for group in groups or self.groups:
            empty = {name: torch.empty(self.files[name], device="meta") for name in group.names}
            found |= {name: tuple(tensor.shape) for name, tensor in self.in_memory(group, empty).items()}
        return found


def weightless(directory: Path) -> Any:
    """Builds the model of a checkpoint without its weights.

    Raises:
        ConfigError: its configuration cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{directory} holds no configuration of a causal language model ({error})") from error


def weightless_like(model: Any) -> Any:
    """Builds a model of the same class and configuration without weights, adapter and ranks."""
    kind = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        return kind(deepcopy(model.config))


class Files:
    """The tensors of several safetensors files by name, read one at a time.

    Raises:
        ConfigError: a file is no safetensors file.
    """

    def __init__(self, paths: Iterator[Path]) -> None:
        self._files: dict[str, Any] = {}
        for path in paths:
            file = open_tensors(path)
            self._files |= dict.fromkeys(file.keys(), file)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Reads names and shapes from the headers alone."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Reads the types from the headers alone."""
        return {name: _DTYPES[file.get_slice(name).get_dtype()] for name, file in self._files.items()}

    def read(self, names: list[str]) -> Tensors:
        """Reads these tensors, onto the CPU."""
        return {name: self._files[name].get_tensor(name) for name in names}


def open_tensors(path: Path) -> Any:
    """Opens a file of safetensors, of which the header alone is read so far.

    Raises:
        ConfigError: it is none, or is damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} is not a readable safetensors file ({error}): fetch or save the checkpoint again"
        ) from error
