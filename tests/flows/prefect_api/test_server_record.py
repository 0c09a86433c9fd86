"""What ``rondo up`` writes down: processes are known by their start, and ended with all that they have started."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.errors import ServerError
from flows.host.processes import end_trees, lives
from flows.prefect_api import server_record
from flows.prefect_api.server import background_api
from flows.prefect_api.server_record import Record, Started

# A child in a session of its own, which ignores a request to end, below a parent that heeds it.
FAMILY = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RONDO_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_found_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    started = Started.of(sleeper.pid)
    server_record.write(Record(4200, "rondo", started))
    read = server_record.read()
    assert read == Record(4200, "rondo", started)
    assert read.server.process == psutil.Process(sleeper.pid)
    sleeper.kill()
    while lives(psutil.Process(sleeper.pid)):
        time.sleep(0.05)
    assert read.server.process is None  # though nobody has asked how it ended, and its id is still taken
    sleeper.wait()
    assert read.server.process is None


def test_another_process_with_the_same_id_is_not_it(sleeper: subprocess.Popen[bytes]) -> None:
    started = Started.of(sleeper.pid)
    assert replace(started, after_boot=started.after_boot - 2).process is None


def test_a_family_ends_as_a_whole_and_nobody_else(sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        end_trees([psutil.Process(parent.pid)], grace=0.5)
        assert not lives(child)
        assert parent.wait(timeout=60) < 0
    assert sleeper.poll() is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"port": 1, "pool": "x", "server": 7, "worker": null}'])
def test_a_record_that_cannot_be_read(content: str) -> None:
    server_record.home().mkdir()
    (server_record.home() / "up.json").write_text(content)
    with pytest.raises(ServerError, match=r"up\.json.*cannot be read.*remove the file"):
        server_record.read()


async def _api(said: list[str]) -> str | None:
    return await background_api(said.append)


def test_a_server_that_was_killed_is_said_and_one_that_hangs_is_an_error(sleeper: subprocess.Popen[bytes]) -> None:
    import asyncio

    said: list[str] = []
    assert asyncio.run(_api(said)) is None
    assert said == []
    # The process runs, and nothing answers at its port.
    server_record.write(Record(9, "rondo", Started.of(sleeper.pid)))
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/api does not answer.*rondo down"):
        asyncio.run(_api(said))
    sleeper.kill()
    sleeper.wait()
    assert asyncio.run(_api(said)) is None
    assert said == [
        "the Prefect server that 'rondo up' started at http://127.0.0.1:9 has ended: 'rondo up' starts it again"
    ]
