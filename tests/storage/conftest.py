"""The store on each backend: a local directory, memory, and S3 as moto serves it on loopback."""

import logging
import os
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import storage.session
from storage.store import Store

sys.path.insert(0, str(Path(__file__).parent))  # store_faults, here and in child processes


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real HTTP endpoint that speaks S3, with the bucket ``rondo``."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/rondo", method="PUT")).close()  # noqa: S310
    yield endpoint
    server.stop()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> None:
    settings = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint, "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory in memory where there is one: thousands of fsyncs of a busy disk would take minutes."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


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
    describe = storage.session.describe_process
    ended = subprocess.Popen(["true"])
    ended.wait()

    def act(who: str) -> None:
        changes = {"dead": {"pid": ended.pid}, "elsewhere": {"host": "elsewhere.example"}, "self": {}}[who]
        monkeypatch.setattr(storage.session, "describe_process", lambda: describe() | changes)

    return act
