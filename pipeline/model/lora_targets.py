"""Which modules of a model an adapter changes: those that the recipe names, or a sensible choice."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from pipeline.errors import ConfigError

_LINEAR = (nn.Linear, Conv1D)
_ADAPTED = (*_LINEAR, nn.Embedding)


def find_targets(model: Any, names: Sequence[str]) -> list[str]:
    """Lists names for peft, which adapts each module whose name is one of them, or ends with a dot and one of them.

    Without names: all linear layers but the output head. Of a mixture of experts those of attention alone, as every
    token trains them; routers stay as they are, and so do the experts, which are stacked in one tensor a layer.

    Raises:
        ConfigError: a name fits no module, or one that cannot be adapted, or embeddings and head that are one tensor.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if not names:
        return _default(model, modules)
    for name in names:
        fitting = {full: module for full, module in modules.items() if f".{full}".endswith(f".{name}")}
        _check_kind(model, name, modules, fitting)
        _check_not_tied(model, name, fitting)
    return list(names)


def adapted_modules(model: Any, names: Sequence[str]) -> dict[str, nn.Module]:
    """Returns the modules that an adapter changes, by their full names.

    Raises:
        ConfigError: as `find_targets`.
    """
    targets = find_targets(model, names)
    return {
        full: module
        for full, module in model.named_modules()
        if full and any(f".{full}".endswith(f".{target}") for target in targets)
    }


def is_mixture(model: Any) -> bool:
    """Says whether layers have experts that are stacked in one tensor."""
    return any(weight.ndim == 3 and "expert" in name for name, weight in model.named_parameters())


def _default(model: Any, modules: dict[str, nn.Module]) -> list[str]:
    head = model.get_output_embeddings()
    linear = [name for name, module in modules.items() if isinstance(module, _LINEAR) and module is not head]
    if is_mixture(model):
        linear = [name for name in linear if "attn" in name or "attention" in name]
    if not linear:
        raise ConfigError(
            f"{type(model).__name__} has no linear layers that update.lora takes by itself: name some in "
            f"update.lora.target_modules, such as {_some(modules)}"
        )
    return sorted(linear)


def _check_kind(model: Any, name: str, modules: dict[str, nn.Module], fitting: dict[str, nn.Module]) -> None:
    if not fitting:
        hint = "; its experts are stacked in one tensor a layer, and no adapter goes there" if is_mixture(model) else ""
        raise ConfigError(
            f"update.lora.target_modules ('{name}',) do not fit the policy: {type(model).__name__} has no module of "
            f"that name{hint}; name some of {_some(modules)}"
        )
    for full, module in fitting.items():
        if not isinstance(module, _ADAPTED):
            raise ConfigError(
                f"update.lora.target_modules names '{name}', and '{full}' is a {type(module).__name__}: adapters go "
                f"with linear layers, embeddings and the output head, such as {_some(modules)}"
            )


def _check_not_tied(model: Any, name: str, fitting: dict[str, nn.Module]) -> None:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if None in ends or ends[0].weight is not ends[1].weight:
        return
    if any(module is end for module in fitting.values() for end in ends):
        raise ConfigError(
            f"update.lora.target_modules names '{name}', and the policy's embeddings and output head are one tensor, "
            "which an adapter of either would change in both: leave it out, or give a checkpoint with "
            "tie_word_embeddings false and a head of its own"
        )


def _some(modules: dict[str, nn.Module]) -> str:
    return ", ".join(
        sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, _LINEAR)})
    )
