"""The store on each backend: a local directory, memory, and S3 as moto serves it on loopback."""

import subprocess
import sys
import uuid
from collections.abc import Callable
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
