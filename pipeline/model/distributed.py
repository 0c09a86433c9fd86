"""Several devices for one update: FSDP2 (torch.distributed.fsdp.fully_shard), one process a device, by torchrun.

Weights, gradients and the optimizer's moments are cut along their first axis, a piece a rank; a layer is whole only
while it computes. The packs of a step are spread over the ranks, and gradients are summed, so that the loss is that of
the whole step. All that a rank decides by (losses, norms, errors) is the same on every rank.

A model knows the world that it is sharded over. If it is not sharded, that world has one rank, and nothing here does
anything.
"""

import heapq
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MethodType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline import errors
from pipeline.errors import RondoError, UnsupportedModelError
from pipeline.packing.packing import Pack, TokenGroup, check_budget, pack_groups

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others, one of which may be fetching or writing a checkpoint meanwhile."""

DIRECTORY = "RONDO_RANKS"
"""Variable that names an empty directory, in which ranks of one machine meet; others do in torchrun's store."""

_WORLD, _RUN = "rondo_world", "rondo_run"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The ranks that share an update: this one's number, how many there are, and the device of this one.

    ``precision`` is that of the layers of the model that is spread over them, while they compute; ``place`` is this
    rank's number among those of its machine.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    precision: Literal["float32", "bfloat16"] = "float32"
    place: int = 0

    @classmethod
    def join(cls, device: str) -> "World":
        """Joins the world that torchrun started this process for; ``device`` is cpu or cuda.

        Ranks find each other in the directory that the variable RONDO_RANKS names, and else through torchrun's store,
        which listens on every network of the machine.
        """
        place, own = int(os.environ["LOCAL_RANK"]), _CPU
        if device == "cuda":
            own = torch.device("cuda", place)
            torch.cuda.set_device(own)
        backend = "nccl" if device == "cuda" else "gloo"
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        directory = os.environ.get(DIRECTORY)
        meeting = f"file://{directory}/ranks" if directory else "env://"
        dist.init_process_group(
            backend, init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE,
            device_id=own if device == "cuda" else None,  # on which ranks that only wait for each other do so
        )  # fmt: skip
        return cls(rank, size, own, place=place)

    @property
    def is_main(self) -> bool:
        """Says whether this rank is the one that writes and answers."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Says whether this rank is the one of its machine that fetches what all of them there read."""
        return self.place == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums the tensor over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, text: str, source: int = 0) -> str:
        """Gives the text that one of the ranks has to all of them."""
        if self.size == 1:
            return text
        data = text.encode()
        length = self.sum(torch.tensor(len(data) if self.rank == source else 0, device=self.device))
        buffer = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == source:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, src=source)
        return bytes(buffer.tolist()).decode()

    def wait(self) -> None:
        """Waits until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """Raises on all ranks, at the end of the block, what one raises in it; nothing in it may wait for another rank.

        Raises:
            RondoError: that of the first rank that has one, with its class and its sentence.
        """
        if self.size == 1:
            yield
            return
        found: RondoError | None = None
        try:
            yield
        except RondoError as error:
            found = error
        failed = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        failed[self.rank] = found is not None
        if 1 not in (flags := self.sum(failed).tolist()):
            return
        first = flags.index(1)
        kind, message = json.loads(self.share(json.dumps([type(found).__name__, str(found)]), first))
        raise getattr(errors, kind, RondoError)(message) from found


ALONE = World()


def rendezvous_store(part: str) -> dist.Store:
    """Opens what ranks write to each other about one matter: torchrun's own store, or a file in RONDO_RANKS' directory.

    Each call opens a store of its own.
    """
    if directory := os.environ.get(DIRECTORY):
        return dist.FileStore(f"{directory}/{part}")
    store, _rank, _size = next(dist.rendezvous("env://", timeout=PATIENCE))
    return dist.PrefixStore(part, store)


def world_of(model: Any) -> World:
    """Returns the world that a model is sharded over."""
    found: World = getattr(model, _WORLD, ALONE)
    return found


def shard(model: Any, world: World, *, precision: Literal["float32", "bfloat16"] = "float32") -> None:
    """Cuts the weights of a model, in place, layer by layer, onto the ranks' devices; each rank has the same weights.

    With ``precision`` bfloat16 layers are gathered in bfloat16, and their float32 gradients summed in float32.
    Embeddings, head and what else is outside of layers are gathered in float32, as autocast leaves the embeddings.

    A single rank has nothing to share, and its model stays as it is.

    Raises:
        UnsupportedModelError: it has no layers of the kind that `transformers` can compute again.
    """
    if world.size > 1:
        cut_layers(model, world, precision=precision)


def cut_layers(model: Any, world: World, *, precision: Literal["float32", "bfloat16"] = "float32") -> None:
    """Does what `shard` says of several ranks, of whatever number: with one, FSDP's own path can be looked at.

    Raises:
        UnsupportedModelError: it has no layers of the kind that `transformers` can compute again.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UnsupportedModelError(f"{type(model).__name__} has no layers to spread: set devices.trainer_ranks to 1")
    mesh = dist.init_device_mesh(world.device.type, (world.size,))
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=half if precision == "bfloat16" else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)
    for module in (*layers, model):
        # Gradients are summed, not averaged. Gloo knows no sum with a factor, hence the second line.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    setattr(model, _WORLD, replace(world, precision=precision))
    setattr(model, _RUN, MethodType(_call, model))
    register_fsdp_forward_method(model, _RUN)


def run_whole(model: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs ``function(model, ...)``, with the weights outside of layers gathered in it and in its backward pass.

    Without gradient these weights stay gathered until `reshard`.
    """
    run = getattr(model, _RUN, None)
    return function(model, *arguments) if run is None else run(function, *arguments)


def _call(model: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(model, *arguments)


def reshard(model: Any) -> None:
    """Leaves each rank its own piece of the weights alone: due after passes without gradient."""
    if world_of(model).size > 1:
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """Returns the piece of a tensor that this rank holds; it may be empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers all of a tensor, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Cuts a tensor that every rank has whole as the weight is cut, without communication; onto the weight's device."""
    if not isinstance(weight, DTensor):
        return tensor.to(weight.device)
    mesh = weight.device_mesh
    pieces = tensor.chunk(mesh.size())  # as FSDP cuts; there may be fewer pieces than ranks
    piece = pieces[mesh.get_local_rank()] if mesh.get_local_rank() < len(pieces) else tensor[:0]
    return join_pieces(piece.to(weight.device, weight.dtype, copy=True), weight, tensor)


def join_pieces(piece: Tensor, weight: Tensor, whole: Tensor) -> Tensor:
    """Makes one tensor of the ranks' pieces, each onto its weight's device, spread as the weight is.

    It has the shape and strides of ``whole``. There is no communication. A weight that is not spread has one piece.
    """
    piece = piece.to(weight.device)
    if not isinstance(weight, DTensor):
        return piece
    return DTensor.from_local(
        piece, weight.device_mesh, weight.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def own_packs(
    groups: Sequence[TokenGroup], token_budget: int, world: World, boundaries: Sequence[int] = ()
) -> list[Pack]:
    """Lists the packs that this rank computes; every rank has as many, some of them perhaps the pack of no group.

    Raises:
        PromptTooLongError: a group is longer than the budget.
        UnsupportedModelError: the model treats a pass by its longest sequence, which differs from rank to rank.
    """
    if world.size == 1:
        return pack_groups(groups, token_budget, boundaries)
    if boundaries:
        raise UnsupportedModelError(
            f"sequences of more than {boundaries[0]} tokens have other rotary positions in this policy (LongRoPE), and "
            "several ranks compute packs of any length together: let devices.trainer_ranks be 1"
        )
    check_budget(groups, token_budget)
    packs = []
    for members in spread([group.packed_tokens for group in groups], token_budget, world.size)[
        world.rank :: world.size
    ]:
        (pack,) = pack_groups([groups[index] for index in members] or [_IDLE], token_budget)
        packs.append(replace(pack, groups=[members[index] for index in pack.groups] if members else []))
    return packs


_IDLE = TokenGroup("(none)", [0], [[0], [0]])
"""One token of input: what a rank without a pack computes beside the others, as layers are gathered together."""


def spread(sizes: Sequence[int], budget: int, ranks: int) -> list[list[int]]:
    """Spreads members over packs of at most ``budget`` tokens, as many packs for each rank, in falling order of size.

    The ranks wait for each other in every pass, so a pass takes packs of about the same size: those that follow each
    other. Each size goes to the pack with the fewest tokens so far, the largest first.
    """
    passes = max(1, math.ceil(sum(sizes) / (budget * ranks)))
    while True:
        heap: list[tuple[int, int]] = [(0, pack) for pack in range(passes * ranks)]
        members: list[list[int]] = [[] for _ in heap]
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            tokens, pack = heap[0]
            heapq.heapreplace(heap, (tokens + sizes[index], pack))
            members[pack].append(index)
        if max(heap)[0] <= budget:
            return [members[pack] for _, pack in sorted(heap, key=lambda filled: (-filled[0], filled[1]))]
        passes += 1 + passes // 50
