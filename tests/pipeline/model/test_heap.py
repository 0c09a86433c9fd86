"""Freed memory goes back to the system, although something that stays lies behind it."""

import ctypes

import psutil
import pytest
import torch

from pipeline.model.heap import trim_heap

MIB = 2**20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_was_freed_in_the_middle_of_the_heap_goes_back() -> None:
    """200 MiB in blocks of 100 kB, which are below the size that glibc maps apart, and one block behind them."""
    process = psutil.Process()
    trim_heap()
    before = process.memory_info().rss
    blocks = [torch.ones(25_000) for _ in range(2_100)]
    behind = torch.ones(25_000)
    del blocks
    kept = process.memory_info().rss - before
    trim_heap()
    left = process.memory_info().rss - before
    assert behind.sum() == 25_000
    assert kept > 150 * MIB, "the test says nothing: glibc has kept nothing"
    assert left < 50 * MIB
