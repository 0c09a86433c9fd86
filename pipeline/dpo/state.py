"""The state of a training run on disk: weights, the optimizer's moments, and plain metrics.

Tensors are safetensors, metrics are JSON: to load them runs no code. Each tensor is stored whole under the name of its
parameter, however it is spread over ranks, so that another number of ranks can go on. Of several ranks all call these
functions; the first one writes.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pipeline.config import UpdateConfig
from pipeline.dpo.host_moments import HostAdamW
from pipeline.dpo.types import RoundFacts
from pipeline.errors import DataError
from pipeline.model.distributed import full_tensor, spread_like, world_of

FILE_BYTES = 4 << 30
"""A file is closed once it has as much: what the writing rank holds of the whole state at a time."""

_WEIGHTS = "weights"
_OPTIMIZER = "optimizer"
_PROGRESS = "progress.json"
_FIELD = "/"  # between a parameter's name and the field of its state: no name of a module has one


DECIDED_ELSEWHERE = frozenset({
    "lora", "schedule_over", "optimizer_state", "reference", "ema_decay", "checkpoint_steps", "reference_logprobs",
    "reference_tolerance", "token_logprobs", "compile",
})  # fmt: skip
"""Fields of the recipe's update that decide what an update is given, and not what it does with it."""
_CONSTANTS = ("beta", "label_smoothing", "target_margin", "dpop_penalty", "divergence", "divergence_alpha")


def hashed_settings(config: UpdateConfig, facts: RoundFacts) -> dict[str, Any]:
    """Returns all that decides what an update does, in the form of version 0.1.0, whose saved states are still found.

    A new field of the recipe's update is part of it, unless it is named in ``DECIDED_ELSEWHERE``.
    """
    fields = config.hashed(exclude={"objective", *_CONSTANTS, *DECIDED_ELSEWHERE})
    start, end = facts.schedule_part(config)
    return {
        **fields,
        "objectives": dict(config.objective),
        "constants": {name: getattr(config, name) for name in _CONSTANTS},
        "schedule_start": start,
        "schedule_end": end,
        "reference_is_start": facts.reference_is_start,
    }


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Writes the state of each parameter of the optimizer into a directory."""
    # Pieces in main memory come to the ranks' devices, which can gather them; what is whole is where it is needed.
    in_pieces = isinstance(optimizer, HostAdamW) and world_of(model).size > 1
    fields = (
        (f"{name}{_FIELD}{field}", optimizer.brought(weight, field) if in_pieces else torch.as_tensor(value))
        for name, weight in _trained(model).items()
        for field, value in optimizer.state.get(weight, {}).items()
    )
    _write(fields, directory, _OPTIMIZER, writes=world_of(model).is_main)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Puts a saved state into the optimizer of a model of the same shape.

    Raises:
        DataError: the file is unreadable, or is that of another model or of another optimizer.
    """
    trained, saved = _trained(model), _Saved(directory, _OPTIMIZER)
    fields: dict[str, list[str]] = {}
    for key, shape in saved.shapes.items():
        name, _, field = key.rpartition(_FIELD)
        fields.setdefault(name, []).append(field)
        if field != "step" and field.startswith("exp_avg") != isinstance(optimizer, torch.optim.AdamW):
            raise DataError(
                f"the optimizer's state in {directory} is that of another optimizer than {type(optimizer).__name__}: "
                f"it has {field} of {name}; set update.optimizer_state to reset"
            )
        if name in trained and field.startswith("exp_avg") and shape not in ((), tuple(trained[name].shape)):
            raise DataError(
                f"the optimizer's state in {directory} is that of another model: {name} is {shape} there and "
                f"{tuple(trained[name].shape)} here; set update.optimizer_state to reset"
            )
    if fields and fields.keys() != trained.keys():
        other = sorted(fields.keys() ^ trained.keys())[:3]
        raise DataError(
            f"the optimizer's state in {directory} is that of another model: {', '.join(other)} is only in one of the "
            "two; set update.optimizer_state to reset"
        )
    for name, names in fields.items():
        weight = trained[name]
        state = {field: _restored(saved.read(f"{name}{_FIELD}{field}"), weight) for field in names}
        if isinstance(optimizer, HostAdamW):  # at once: all of them would not fit beside the weights
            optimizer.keep(weight, state)
        else:
            optimizer.state[weight] = state


def save_state(model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any], directory: Path) -> None:
    """Writes trained weights, the optimizer's state and metrics into a directory."""
    _write(_trained(model).items(), directory, _WEIGHTS, writes=world_of(model).is_main)
    save_optimizer(model, optimizer, directory)
    if world_of(model).is_main:
        (directory / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")


def load_progress(directory: Path, identity: str) -> dict[str, Any]:
    """Reads the metrics of a saved state.

    Raises:
        DataError: their ``identity`` is another one, or they cannot be read.
    """
    try:
        progress: dict[str, Any] = json.loads((directory / _PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{directory / _PROGRESS} cannot be read ({error}): begin the round's update anew") from error
    if progress["identity"] != identity:
        raise DataError(
            f"the update that was saved in {directory} had other preferences, settings or another seed: it cannot be "
            "continued with these"
        )
    return progress


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Puts saved weights and the optimizer's state in place.

    Raises:
        DataError: a file does not fit the model, or cannot be read.
    """
    trained, saved = _trained(model), _Saved(directory, _WEIGHTS)
    if saved.shapes != {name: tuple(weight.shape) for name, weight in trained.items()}:
        raise DataError(f"the weights in {directory} are those of another model")
    load_optimizer(model, optimizer, directory)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(spread_like(saved.read(name), weight))


def _restored(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | int:
    """Restores a field of a weight's state; bitsandbytes counts steps in plain integers, torch in float32 tensors."""
    if tensor.ndim == 0:
        return tensor.to(weight.device) if tensor.is_floating_point() else int(tensor)
    return spread_like(tensor, weight)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _write(tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, stem: str, *, writes: bool) -> None:
    """Gathers tensors one at a time, on every rank, and writes them on one, into files of bounded size."""
    for number, batch in enumerate(_batches(tensors, keep=writes)):
        if writes:
            save_file(batch, directory / f"{stem}{f'-{number}' if number else ''}.safetensors")


def _batches(tensors: Iterable[tuple[str, torch.Tensor]], *, keep: bool) -> Iterator[dict[str, torch.Tensor]]:
    batch: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if size >= FILE_BYTES:
            yield batch
            batch, size = {}, 0
        full = full_tensor(tensor.detach())
        if keep:
            batch[name] = full.cpu().contiguous()
            size += full.nbytes
    yield batch


class _Saved:
    """Tensors in the files of one kind, read one at a time."""

    def __init__(self, directory: Path, stem: str) -> None:
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(directory.glob(f"{stem}*.safetensors")) or [directory / f"{stem}.safetensors"]:
            try:
                file: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"{path} is not a readable safetensors file ({error}): begin the round's update anew"
                ) from error
            for name in file.keys():  # noqa: SIM118
                self._files[name] = file
                self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor
