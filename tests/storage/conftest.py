"""The store on each backend: a local directory, memory, and S3 as moto serves it on loopback."""

import multiprocessing
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest

import flows  # noqa: F401  the sentences are those that users see, with commands in them
import storage.log.lease
from storage.log.store import Store

sys.path.insert(0, str(Path(__file__).parent))  # store_faults, here and in child processes


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, disk: Path) -> Store:
    if request.param == "local":
        return Store.open(disk / "root")
    if request.param == "memory":
        return Store.open("memory://")
    request.getfixturevalue("s3_environment")
    return Store.open(f"s3://rondo/{uuid.uuid4().hex}")


@pytest.fixture
def local(disk: Path) -> Store:
    return Store.open(disk / "root")


@pytest.fixture
def act_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Open the next sessions as another process: ``dead`` on this host, ``elsewhere``, or ``self``."""
    describe = storage.log.lease.describe_process
    ended = subprocess.Popen(["true"])
    ended.wait()

    def act(who: str) -> None:
        changes = {"dead": {"pid": ended.pid}, "elsewhere": {"host": "elsewhere.example"}, "self": {}}[who]
        monkeypatch.setattr(storage.log.lease, "describe_process", lambda: describe() | changes)

    return act


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.ForkServerContext:
    """Forks children from a process that has imported the store, and what tests have them do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["storage.tables.checkpoints", "store_faults", "store_races"])
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11 does not hand on its own path, and says nothing of what it then cannot import.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context
