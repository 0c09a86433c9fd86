"""A worker that is told to end, with stand-ins for Prefect's worker and for a run: real processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# Takes a while to end in order, as a run does.
RUN = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1], "closed").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "runs").touch()
time.sleep(600)
"""
# Kills its runs when it is asked to end, as Prefect's does.
WORKER = """
import signal, subprocess, sys
run = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
def end(*_):
    run.kill()
    sys.exit()
signal.signal(signal.SIGTERM, end)
signal.pause()
run.wait()
signal.pause()
"""
ITSELF = (
    "import sys; from flows.schedule.pool_worker import work; sys.exit(work([sys.executable, '-c', *sys.argv[1:]]))"
)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_runs_end_in_order_before_their_worker(tmp_path: Path, how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", ITSELF, WORKER, str(tmp_path), RUN]) as worker:
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(worker.pid).children(recursive=True)
        worker.send_signal(how)
        assert worker.wait(60) == 0
    assert (tmp_path / "closed").exists()
    assert len(family) == 2
    assert not [member for member in family if member.is_running()]


def test_a_worker_that_ends_by_itself_says_how() -> None:
    done = subprocess.run([sys.executable, "-c", ITSELF, "raise SystemExit(3)"], check=False, timeout=60)
    assert done.returncode == 3
