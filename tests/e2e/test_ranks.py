"""Runs whose update is shared by two processes, on CPU."""

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
from support.compare import assert_same
from support.recipes import TINY

Rondo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "ranks.yaml"
    update = {**TINY["update"], "optimizer_state": "carried", "checkpoint_steps": 2, "adam_epsilon": 1e-2}
    path.write_text(yaml.safe_dump({**TINY, "rounds": 1, "update": update}))
    return path


@pytest.fixture(scope="module")
def shared(rondo: Rondo, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run by one rank, and of one by two."""
    root = tmp_path_factory.mktemp("ranks")
    rondo("run", str(recipe), "--name", "one", "--root", str(root))
    two = rondo("run", str(recipe), "--name", "two", "--root", str(root), "--set", "devices.trainer_ranks=2")
    assert not left_of(root), two.stderr
    return root


def left_of(root: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if str(root) in str(process.info["cmdline"])]


def test_two_ranks_make_the_round_of_one(shared: Path) -> None:
    """All that comes before the update is the same to the bit, the update in float32 sums of another order."""
    store = Store.open(shared)
    one, two = store.run("one"), store.run("two")
    for stage in ("prompts", "candidates", "preferences"):
        number = int(stage != "prompts")
        assert read_table(store, one.files(number, stage)).equals(read_table(store, two.files(number, stage))), stage
    first, second = (run.rounds()[1].meta for run in (one, two))
    assert second["first_loss"] == pytest.approx(first["first_loss"], rel=1e-6)
    # 5 digits: about five optimizer steps, each on the weights that the one before made.
    assert second["last_loss"] == pytest.approx(first["last_loss"], rel=1e-4)
    assert second["steps"] == first["steps"]
    before, after = (load(store, run, "checkpoint") for run in (one, two))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    moments = load(store, two, "optimizer")
    torch.testing.assert_close(moments, load(store, one, "optimizer"), rtol=1e-3, atol=1e-6)
    states = [len(run.entries(round=1, stage="update_state")) for run in (one, two)]
    assert states[0] == states[1] > 0


def load(store: Store, run: Any, stage: str) -> dict[str, torch.Tensor]:
    files = run.entries(round=1, stage=stage)[-1].files
    return load_file(next(Path(store.root) / file.path for file in files if file.path.endswith(".safetensors")))


def test_killed_within_its_update_two_ranks_go_on(rondo: Rondo, recipe: Path, shared: Path, tmp_path: Path) -> None:
    arguments = ["--name", "two", "--root", str(tmp_path), "--set", "devices.trainer_ranks=2"]
    killed = rondo("run", str(recipe), *arguments, kill="update_state:1:after")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    gone_within(tmp_path)
    rondo("resume", "two", "--root", str(tmp_path))
    assert_same(shared, "two", tmp_path, "two", range(2))
    assert not left_of(tmp_path)


def gone_within(root: Path, seconds: float = 30) -> None:
    """Usually less than a second; a busy machine may take longer."""
    deadline = time.monotonic() + seconds
    while (left := left_of(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
