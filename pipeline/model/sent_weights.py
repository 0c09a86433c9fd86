"""The weights of a model in memory, as the sampler would read them from their checkpoint: the same bits, no file.

They are made a few tensors at a time: gathered from the ranks, an adapter merged into them, split and renamed as in the
files, and turned into the sampler's precision. So no memory ever holds all of them a second time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from pipeline.model.checkpoint_files import weight_files
from pipeline.model.distributed import full_tensor, world_of
from pipeline.model.lora import Adapter, Changes
from pipeline.model.policy import tensors_by_saved_name
from pipeline.model.sampler_copy import tied_names
from pipeline.model.weight_names import Files, Group, WeightNames, weightless_like
from pipeline.model.weight_pieces import PIECE_BYTES, WantedWeights


@dataclass(frozen=True)
class SavedLayout:
    """How the files of a checkpoint hold a model: names, shapes and types of the tensors, and the way from memory."""

    model: Any
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]

    @cached_property
    def names(self) -> WeightNames:
        """Returns the way between names in memory and in the files."""
        return WeightNames(weightless_like(self.model), self.shapes)

    @classmethod
    def of(cls, model: Any, directory: Path) -> "SavedLayout":
        """Reads it from the headers of the checkpoint that the model has been loaded from."""
        files = Files(weight_files(directory))
        return cls(model, files.shapes, files.dtypes)


class SentWeights:
    """What is sent of a model to a sampler, in pieces.

    Args:
        layout: of the model, from the checkpoint that it was loaded from. Of ranks that it is spread over, all do the
            same.
        wanted: what the sampler takes.
        adapter: the one that the model carries; it is sent merged.
    """

    def __init__(
        self,
        layout: SavedLayout,
        wanted: WantedWeights,
        adapter: Adapter | None = None,
        *,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._model, self._layout, self._wanted, self._adapter = layout.model, layout, wanted, adapter
        self._changes: Changes | None = None
        self._tensors = tensors_by_saved_name(layout.model)
        self._aliases = self._find_aliases()
        self._in_memory = {group.target: list(layout.names.shapes(group)) for group in layout.names.groups}
        self._pieces: list[list[Group]] = []
        filled = 0
        for group in layout.names.groups:
            size = sum(self._bytes(name) for name in group.names)
            if not self._pieces or (filled and filled + size > piece_bytes):
                self._pieces.append([])
                filled = 0
            self._pieces[-1].append(group)
            filled += size

    def __len__(self) -> int:
        """Counts the pieces."""
        return len(self._pieces)

    @property
    def fit(self) -> bool:
        """Says whether they are all that the sampler wants, and nothing else."""
        sent = {name: shape for own, shape in self._layout.shapes.items() for name in self._names(own)}
        own = {name for names in self._in_memory.values() for name in names}
        return sent == dict(self._wanted.shapes) and own <= self._tensors.keys()

    def piece(self, number: int) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
        """Makes the tensors of a piece, one group after the other; on all ranks but the first there are none."""
        if self._adapter is not None and self._changes is None:
            self._changes = self._adapter.changes()
        for group in self._pieces[number]:
            weights = {name: self._gathered(name) for name in self._in_memory[group.target]}
            if not world_of(self._model).is_main:
                continue
            saved = self._layout.dtypes[group.names[0]]
            if self._changes is not None:  # which a merged checkpoint adds to the base as its files have it
                weights = {name: self._merged(name, weight.to(saved)) for name, weight in weights.items()}
            for name, tensor in self._layout.names.in_files(group, weights).items():
                yield self._names(name), tensor.to(self._type(tensor.dtype))

    def _find_aliases(self) -> dict[str, str]:
        """Names what the sampler wants as a tensor of its own, and the model has as one with its embeddings."""
        lacking = self._wanted.shapes.keys() - self._layout.shapes.keys()
        if not lacking:
            return {}
        embeddings, head = tied_names(self._layout.shapes, lambda: weightless_like(self._model))
        return {embeddings: head} if lacking == {head} else {}

    def _names(self, saved: str) -> tuple[str, ...]:
        return (saved, self._aliases[saved]) if saved in self._aliases else (saved,)

    def _gathered(self, name: str) -> torch.Tensor:
        whole = full_tensor(self._tensors[name].detach())
        return whole.cpu() if world_of(self._model).is_main else whole

    def _merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        assert self._changes is not None
        return self._changes.added(self._layout.names.model, name, weight)

    def _type(self, dtype: torch.dtype) -> torch.dtype:
        precision = self._wanted.precision
        return getattr(torch, precision) if precision and dtype.is_floating_point else dtype

    def _bytes(self, name: str) -> int:
        return int(prod(self._layout.shapes[name]) * self._type(self._layout.dtypes[name]).itemsize)
