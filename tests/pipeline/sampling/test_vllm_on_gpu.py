"""What of the vLLM sampler only a GPU takes, with stand-ins for what only a GPU has."""

import os
import subprocess
import sys

import pytest

from pipeline.errors import EngineError
from pipeline.sampling.vllm_sleep import CACHE, WEIGHTS, LentMemory


class FullCard:
    """An engine whose GPU is held by others when it wakes, and which sees them take memory while it falls asleep."""

    def sleep(self, level: int) -> None:
        raise AssertionError("Memory usage increased after sleeping.")

    def wake_up(self, tags: list[str]) -> None:
        raise RuntimeError("CUDA Error: out of memory at csrc/cumem_allocator.cpp:139\nmore lines")


def test_an_engine_that_cannot_sleep_or_wake_is_given_up() -> None:
    """By its class, who holds it knows that only a new one helps: half of this one's memory may be mapped."""
    memory = LentMemory(FullCard())
    with pytest.raises(EngineError, match=r"cannot lend its GPU's memory \(AssertionError: Memory usage increased"):
        memory.lend(keeps_weights=True)
    memory._asleep = (WEIGHTS, CACHE)
    for wake in (memory.wake, memory.begin_weights, memory.end_weights):
        with pytest.raises(EngineError, match=r"take back .* \(RuntimeError: CUDA Error: out of memory at [^\n]*: "):
            wake()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_an_engine_on_gpus_starts_its_parts_anew_and_compiles_no_sampler(device: str) -> None:
    script = (
        "import os, sys; from pipeline.sampling.environment import configure_environment\n"
        "configure_environment(sys.argv[1], 1)\n"
        "print(os.environ.get('VLLM_WORKER_MULTIPROC_METHOD'), os.environ.get('VLLM_USE_FLASHINFER_SAMPLER'))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", script, device], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == (["spawn", "0"] if device == "cuda" else ["None", "None"])
