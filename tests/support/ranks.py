"""What tests of an update's ranks share: a store with something to work on, and what is left when they have ended."""

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load

from pipeline.records import PROMPTS, to_table
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory
from storage.tables.shards import read_table, write_table
from support.tiny import tiny_llama


def probe_inputs(store: Store) -> dict[str, Any]:
    """A run 'r' with a checkpoint and a prompt, as the arguments of the trainer's ``probe``."""
    store.create_run("r", {})
    with stage_directory(store, "r", 0, "checkpoint") as staged:
        tiny_llama(staged.path)
    row = {
        "prompt_id": "p", "text": "w1 w2", "messages": None, "token_ids": [5, 6, 7], "source": "test",
        "reference_answer": None, "split": "train",
    }  # fmt: skip
    prompts = write_table(store, "r", 0, "prompts", to_table([row], PROMPTS))
    return {"checkpoint": [file.to_json() for file in staged.files], "prompts": [prompts.to_json()]}


def family(pid: int | None) -> list[psutil.Process]:
    """Torchrun and its ranks, in the order of their numbers."""
    torchrun = psutil.Process(pid)
    ranks = [rank for rank in torchrun.children() if "RANK" in rank.environ()]
    return [torchrun, *sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))]


def listening(processes: Sequence[psutil.Process]) -> set[str]:
    """The addresses that they listen on."""
    return {one.laddr.ip for process in processes for one in process.net_connections() if one.status == "LISTEN"}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


AGAIN = """
import subprocess, sys, time
while True:
    subprocess.run(sys.argv[1:])
    time.sleep(0.2)
"""


def torchrun_elsewhere(address: str, *arguments: str, ranks: int = 1) -> list[str]:
    """The command that people start on another machine; here both are one, and only the head hosts the store."""
    options = [f"--nproc-per-node={ranks}", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}"]
    options.append("--rdzv-conf=is_host=false,read_timeout=300")
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", *options, "-m", "flows.remote.rank_main",
        *arguments,
    ]  # fmt: skip


@contextmanager
def other_machine(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[psutil.Popen]:
    """Another machine on which a command is started again and again; all that it has started ends with it."""
    with psutil.Popen([sys.executable, "-c", AGAIN, *command], env={**os.environ, **environment}) as machine:
        try:
            yield machine
        finally:
            switch_off(machine)


def switch_off(machine: psutil.Process) -> None:
    """Kills all of a machine's processes."""
    for process in [machine, *machine.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Usually within half a second; a busy machine may take much longer."""
    return not psutil.wait_procs(processes, timeout=300)[1]


def none_left(root: str) -> bool:
    """Whether no process of a run under this root is left: usually within a second, later on a busy machine."""
    deadline = time.monotonic() + 300
    while left := [one for one in psutil.process_iter(["cmdline"]) if root in str(one.info["cmdline"])]:
        if time.monotonic() > deadline:
            return False
        psutil.wait_procs(left, timeout=0.1)
    return True


def assert_same_round(store: Store, name: str, other: str) -> None:
    """All that comes before the update is the same to the bit, the update in float32 sums of another order."""
    one, two = store.run(name), store.run(other)
    for number, stage in ((0, "prompts"), (1, "candidates"), (1, "preferences")):
        assert read_table(store, one.files(number, stage)).equals(read_table(store, two.files(number, stage))), stage
    assert len(two.entries(round=1, stage="update_state")) == len(one.entries(round=1, stage="update_state")) > 1
    first, second = (run.rounds()[1].meta for run in (one, two))
    assert second["first_loss"] == pytest.approx(first["first_loss"], rel=1e-6)
    assert second["steps"] == first["steps"]
    # About five optimizer steps, each on the weights that the one before made.
    assert second["last_loss"] == pytest.approx(first["last_loss"], rel=1e-4)
    torch.testing.assert_close(*(tensors(store, run, "checkpoint") for run in (two, one)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(tensors(store, run, "optimizer") for run in (two, one)), rtol=1e-3, atol=1e-6)


def tensors(store: Store, run: Run, stage: str) -> dict[str, torch.Tensor]:
    """The tensors of a stage of round 1."""
    (file,) = (file for file in run.files(1, stage) if file.path.endswith(".safetensors"))
    return load(store.objects.read(file.path))
