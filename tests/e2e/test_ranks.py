"""A run whose update is shared by two processes, on CPU, and that is killed in the middle of it."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from storage.shards import read_table
from storage.store import Store
from support.recipes import TINY

Rondo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.timeout(900)
def test_two_ranks_make_the_round_of_one(rondo: Rondo, tmp_path: Path) -> None:
    """Killed after its first saved state, the run leaves no process, and goes on with two new ranks."""
    update = {**TINY["update"], "optimizer_state": "carried", "checkpoint_steps": 2, "adam_epsilon": 1e-2}
    recipe = tmp_path / "ranks.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, "rounds": 1, "update": update}))
    root = tmp_path / "root"
    rondo("run", str(recipe), "--name", "one", "--root", str(root))
    two = ("run", str(recipe), "--name", "two", "--root", str(root), "--set", "devices.trainer_ranks=2")
    killed = rondo(*two, kill="update_state:1:after")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert gone(root)
    rondo("resume", "two", "--root", str(root))
    assert gone(root)
    compare(Store.open(root))


def compare(store: Store) -> None:
    """All that comes before the update is the same to the bit, the update in float32 sums of another order."""
    one, two = store.run("one"), store.run("two")
    for number, stage in ((0, "prompts"), (1, "candidates"), (1, "preferences")):
        assert read_table(store, one.files(number, stage)).equals(read_table(store, two.files(number, stage))), stage
    assert len(two.entries(round=1, stage="update_state")) == len(one.entries(round=1, stage="update_state")) > 1
    first, second = (run.rounds()[1].meta for run in (one, two))
    assert second["first_loss"] == pytest.approx(first["first_loss"], rel=1e-6)
    assert second["steps"] == first["steps"]
    # About five optimizer steps, each on the weights that the one before made.
    assert second["last_loss"] == pytest.approx(first["last_loss"], rel=1e-4)
    torch.testing.assert_close(*(load(store, run, "checkpoint") for run in (two, one)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(load(store, run, "optimizer") for run in (two, one)), rtol=1e-3, atol=1e-6)


def load(store: Store, run: Any, stage: str) -> dict[str, torch.Tensor]:
    (file,) = (file for file in run.files(1, stage) if file.path.endswith(".safetensors"))
    return load_file(Path(store.root) / file.path)


def gone(root: Path) -> bool:
    """Whether no process of a run is left: usually within a second, later on a busy machine."""
    deadline = time.monotonic() + 300
    while left := [one for one in psutil.process_iter(["cmdline"]) if str(root) in str(one.info["cmdline"])]:
        if time.monotonic() > deadline:
            return False
        psutil.wait_procs(left, timeout=0.1)
    return True
