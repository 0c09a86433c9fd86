"""Memory that the C library of a process keeps for later."""

import ctypes


def trim_heap() -> None:
    """Gives back to the system what was freed, if the C library is glibc: of itself it keeps most of it.

    Freed activations lie between blocks that stay, and only what is at the end of the heap goes back by itself.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
