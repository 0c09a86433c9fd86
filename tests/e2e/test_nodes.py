"""Runs in a bucket whose update is shared by two machines, here two processes with directories of their own."""

import signal
import subprocess
import sys
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
import yaml

from storage.log.store import Store
from support.ranks import assert_same_round, free_port, none_left, other_machine, torchrun_elsewhere
from support.recipes import TINY
from support.unreliable_s3 import UnreliableS3

UPDATE = {**TINY["update"], "optimizer_state": "carried", "checkpoint_steps": 2, "adam_epsilon": 1e-2}


class Cluster:
    """Machines that see one bucket."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment, self._directory = environment, directory
        self.root = f"s3://rondo/{uuid.uuid4().hex}"
        self.address = f"127.0.0.1:{free_port()}"
        self.recipe = directory / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump({**TINY, "rounds": 1, "update": UPDATE}))

    def command(self, *arguments: str, kill: str | None = None) -> list[str]:
        module = ["support.killed", kill] if kill else ["flows.cli.main"]
        return [sys.executable, "-m", *module, *arguments, "--root", self.root]

    def environment(self, machine: str) -> dict[str, str]:
        """Each machine has its own place for temporary files."""
        temporary = self._directory / machine
        temporary.mkdir(exist_ok=True)
        return {**self._environment, "TMPDIR": str(temporary)}

    def rondo(self, *arguments: str, kill: str | None = None) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(*arguments, kill=kill), self.environment("head")
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)

    def left_behind(self) -> list[str]:
        """What lies in the directories for temporary files, apart from logs of what ended badly."""
        found = (path for machine in ("head", "other") for path in (self._directory / machine).rglob("rondo-*/*"))
        return [str(path) for path in found if path.suffix != ".log"]

    def other_machine(self) -> AbstractContextManager[psutil.Popen]:
        return other_machine(torchrun_elsewhere(self.address, "--root", self.root), self.environment("other"))


@pytest.fixture
def cluster(environment: dict[str, str], s3: UnreliableS3, s3_environment: None, tmp_path: Path) -> Cluster:
    return Cluster({**environment, **s3.environment}, tmp_path)


@pytest.mark.nightly  # two ranks, killed: test_ranks.py; machines that leave: tests/flows/remote/test_nodes.py
@pytest.mark.timeout(1500)
def test_two_machines_make_the_round_of_one(cluster: Cluster) -> None:
    """A rank dies within an update, and the same command goes on; a head dies, and then one machine goes on alone.

    Both go on after a state that two ranks saved.
    """
    shared = ("--set", "devices.trainer_nodes=2", "--set", f"devices.trainer_address={cluster.address}")
    done = cluster.rondo("run", str(cluster.recipe), "--name", "one")
    assert done.returncode == 0, done.stderr
    with cluster.other_machine():
        done = cluster.rondo("run", str(cluster.recipe), "--name", "two", *shared, kill="update_state:1:rank")
        assert done.returncode == 0, done.stderr
    store = Store.open(cluster.root)
    assert_same_round(store, "one", "two")
    assert cluster.left_behind() == []

    with cluster.other_machine():
        done = cluster.rondo("run", str(cluster.recipe), "--name", "three", *shared, kill="update_state:1:after")
        assert done.returncode == -signal.SIGKILL, done.stderr
        done = cluster.rondo("resume", "three", "--set", "devices.trainer_nodes=1")
        assert done.returncode == 0, done.stderr
    assert_same_round(store, "one", "three")
    assert none_left(cluster.root)
    assert cluster.left_behind() == []

    refused = cluster.rondo("resume", "three", "--set", "update.beta=0.2")
    assert refused.returncode == 1
    assert "run 'three' was started with another recipe (update.beta: 0.1 -> 0.2)" in refused.stderr
