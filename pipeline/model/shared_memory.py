"""A policy's weights on their way to another process of this machine: a piece of them at a time, in shared memory.

A piece is a file in memory without a name (``memfd_create``), which the other process opens as a descriptor of this
one. So nothing has to be cleaned up: whoever dies, the memory goes when nobody maps it any more. Nor does the size of
/dev/shm matter, which is 64 MiB in a container. A piece that has been written is sealed: nobody can change it.
"""

import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from math import prod

import torch

from pipeline.model.weight_pieces import PlacedTensor, WeightPiece

_ALIGNMENT = 64


class SharedPiece:
    """A piece that this process has written and holds until `close`; who has opened it by then keeps it.

    Args:
        tensors: each with all of its names. They are taken one by one.
    """

    def __init__(self, tensors: Iterable[tuple[tuple[str, ...], torch.Tensor]]) -> None:
        self._descriptor = os.memfd_create("rondo-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size, placed = 0, list[PlacedTensor]()
        try:
            for names, tensor in tensors:
                offset = -(-size // _ALIGNMENT) * _ALIGNMENT
                size = offset + self._write(tensor, offset)
                dtype = str(tensor.dtype).removeprefix("torch.")
                placed.append(PlacedTensor(names, dtype, tuple(tensor.shape), offset))
            os.ftruncate(self._descriptor, size)  # also if it ends with a tensor of no bytes
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            self.close()
            raise
        self.piece = WeightPiece(os.getpid(), self._descriptor, size, tuple(placed))

    def close(self) -> None:
        """Gives the piece up."""
        os.close(self._descriptor)

    def _write(self, tensor: torch.Tensor, offset: int) -> int:
        data = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        done = 0
        while done < len(data):  # the system writes at most 2 GiB at once
            done += os.pwrite(self._descriptor, data[done:], offset + done)
        return done


def read_piece(piece: WeightPiece) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a piece by their names, without a copy; the memory goes with the last of them.

    Raises:
        OSError: the process that wrote it is gone, or has given it up.
    """
    if not piece.bytes:
        return
    descriptor = os.open(f"/proc/{piece.process}/fd/{piece.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Copied if it is written to, which nobody does: torch wants memory that could be.
        memory = mmap.mmap(descriptor, piece.bytes, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)
    for placed in piece.tensors:
        dtype, count = getattr(torch, placed.dtype), prod(placed.shape)
        flat = torch.empty(0, dtype=dtype)
        if count:
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=placed.offset)
        for name in placed.names:
            yield name, flat.view(placed.shape)
