"""A run whose update is shared by two processes, on CPU, and that is killed in the middle of it."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from storage.log.store import Store
from support.forkserver import Done
from support.ranks import assert_same_round, none_left
from support.recipes import TINY

Rondo = Callable[..., Done]


@pytest.mark.timeout(900)
def test_two_ranks_make_the_round_of_one(started_rondo: Rondo, tmp_path: Path) -> None:
    """Killed after its first saved state, the run leaves no process, and goes on with two new ranks."""
    update = {**TINY["update"], "optimizer_state": "carried", "checkpoint_steps": 2, "adam_epsilon": 1e-2}
    recipe = tmp_path / "ranks.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, "rounds": 1, "update": update}))
    root = tmp_path / "root"
    started_rondo("run", str(recipe), "--name", "one", "--root", str(root))
    two = ("run", str(recipe), "--name", "two", "--root", str(root), "--set", "devices.trainer_ranks=2")
    killed = started_rondo(*two, kill="update_state:1:after")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert none_left(str(root))
    started_rondo("resume", "two", "--root", str(root))
    assert none_left(str(root))
    assert_same_round(Store.open(root), "one", "two")
