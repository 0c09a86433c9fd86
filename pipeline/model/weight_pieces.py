"""What is said of weights that travel to another process of this machine; no tensor is in here."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PIECE_BYTES = 64 * 2**20
"""Size of a piece, unless tensors that belong together are larger. At most two are in memory at a time."""
CAN_SHARE_MEMORY = sys.platform == "linux"
"""Whether this system has files in memory that another process can open."""


@dataclass(frozen=True)
class WantedWeights:
    """What a sampler takes: names and shapes of the tensors as a checkpoint has them, and their precision.

    ``precision`` is None if every tensor is wanted in the type that its file has.
    """

    shapes: Mapping[str, tuple[int, ...]]
    precision: Literal["float32", "bfloat16"] | None


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor within a piece: its names, and where its bytes begin."""

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class WeightPiece:
    """Where a piece lies, as process and descriptor, and the tensors in it."""

    process: int
    descriptor: int
    bytes: int
    tensors: tuple[PlacedTensor, ...]
