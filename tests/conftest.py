"""Shared by all tests: one Prefect server, one S3 endpoint, and a directory in memory."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forkserver import ForkServer, forked_environment, forkserver
from support.unreliable_s3 import UnreliableS3, unreliable_s3

pytest.register_assert_rewrite("support.sampler_contract", "support.compare", "support.ranks")
TESTS = Path(__file__).parent
# Folders whose files take minutes. They come first, so that at the end no worker waits long for the other.
DEAR = ("chaos", "e2e", "flows/remote")

# A job in the background of a script ignores Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.relative_to(TESTS).as_posix().startswith(DEAR))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user whose Prefect server runs, with a home of its own."""
    import asyncio
    import contextlib

    home = tmp_path_factory.mktemp("prefect")
    # A home of its own for rondo too: what its developer has up is not for tests.
    os.environ |= {"PREFECT_HOME": str(home), "RONDO_HOME": str(home / "rondo")}
    variables = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "COLUMNS": "200"}
    variables.pop("PREFECT_API_URL", None)
    from flows.prefect_api.server import prefect_api

    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        server = prefect_api()
        variables["PREFECT_API_URL"] = runner.run(server.__aenter__())
        stack.callback(lambda: runner.run(server.__aexit__(None, None, None)))
        yield variables


@pytest.fixture(scope="session")
def forked(environment: dict[str, str]) -> dict[str, str]:
    """The same, for processes that are forked."""
    return forked_environment(environment)


@pytest.fixture(scope="session")
def forks(forked: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Forks a ready process for each command: most of their time would go into importing torch."""
    with forkserver(tmp_path_factory.mktemp("f"), forked) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[UnreliableS3]:
    """A real HTTP endpoint that speaks S3, with the bucket ``rondo``."""
    with unreliable_s3() as server:
        yield server


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch, s3: UnreliableS3) -> None:
    s3.reset()
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory in memory where there is one: thousands of fsyncs of a busy disk would take minutes."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)
