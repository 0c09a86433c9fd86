"""The state of a training run on disk: weights, the optimizer's moments, and plain figures.

Tensors are safetensors, figures are JSON: to load them runs no code. Each tensor is stored whole under the name of its
parameter, however it is spread over devices, so that another number of devices can go on.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import DataError

_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_PROGRESS = "progress.json"
_FIELD = "/"  # between a parameter's name and the field of its state: no name of a module has one


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Write the state of each parameter of the optimizer into a directory."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in _trained(model).items():
        for field, value in optimizer.state.get(weight, {}).items():
            tensors[f"{name}{_FIELD}{field}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, directory / _OPTIMIZER)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Put a saved state into the optimizer of a model of the same shape.

    Raises:
        DataError: the file is unreadable, or is that of another model or of another optimizer.
    """
    trained = _trained(model)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _read(directory / _OPTIMIZER).items():
        name, _, field = key.rpartition(_FIELD)
        states.setdefault(name, {})[field] = tensor
    if states and states.keys() != trained.keys():
        other = sorted(states.keys() ^ trained.keys())[:3]
        raise DataError(
            f"the optimizer's state in {directory} is that of another model: {', '.join(other)} is only in one of the "
            "two; set update.optimizer_state to reset"
        )
    for name, state in states.items():
        weight = trained[name]
        for field, tensor in state.items():
            if tensor.ndim and field.startswith("exp_avg") and tensor.shape != weight.shape:
                raise DataError(
                    f"the optimizer's state in {directory} is that of another model: {name} is "
                    f"{tuple(tensor.shape)} there and {tuple(weight.shape)} here; set update.optimizer_state to reset"
                )
        optimizer.state[weight] = {field: _restored(tensor, weight.device) for field, tensor in state.items()}


def save_state(model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any], directory: Path) -> None:
    """Write trained weights, the optimizer's state and figures into a directory."""
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in _trained(model).items()}, directory / _WEIGHTS
    )
    save_optimizer(model, optimizer, directory)
    (directory / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path, identity: str) -> dict[str, Any]:
    """Put saved weights and the optimizer's state in place, and return the figures.

    Raises:
        DataError: the figures' ``identity`` is another one, or a file does not fit the model.
    """
    progress: dict[str, Any] = json.loads((directory / _PROGRESS).read_text(encoding="utf-8"))
    if progress["identity"] != identity:
        raise DataError(
            f"the update that was saved in {directory} had other preferences, settings or another seed: it cannot be "
            "continued with these"
        )
    trained, found = _trained(model), _read(directory / _WEIGHTS)
    if {name: tensor.shape for name, tensor in found.items()} != {name: w.shape for name, w in trained.items()}:
        raise DataError(f"the weights in {directory} are those of another model")
    load_optimizer(model, optimizer, directory)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(found[name])
    return progress


def _restored(tensor: torch.Tensor, device: torch.device) -> torch.Tensor | int:
    """A field of a parameter's state; bitsandbytes counts steps in plain integers, torch in tensors of float32."""
    return int(tensor) if tensor.ndim == 0 and not tensor.is_floating_point() else tensor.to(device)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is not a readable safetensors file ({error}): begin the round's update anew"
        ) from error
    return tensors
