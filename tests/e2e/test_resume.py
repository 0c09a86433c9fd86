"""A run that is killed, in processes started as a user's are, and resumed ends as the run that nothing interrupted."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from flows.cli.main import INTERRUPTED
from storage.log.store import Store
from support.compare import assert_same
from support.forkserver import Done

Rondo = Callable[..., Done]

# Kills at every write are in tests/chaos; here are those in the middle of work, and of a second round.
KILLS = (
    "prepare_policy:0:during",
    "finish_update:1:during",
    "checkpoint:1:after",
    "candidates:2:after",
    "finish_update:2:during",
)


def test_killed_in_the_middle_of_work(rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path) -> None:
    """One run is killed five times on its way, each time further on, and loses nothing."""
    arguments = ["run", str(tiny_recipe), "--name", "killed", "--root", str(tmp_path)]
    for kill in KILLS:
        done = rondo(*arguments, kill=kill)
        assert done.returncode == -signal.SIGKILL, f"{kill} was not reached: {done.stderr}"
        arguments = ["resume", "killed", "--root", str(tmp_path)]
    rondo(*arguments)
    assert_same(whole, "whole", tmp_path, "killed", range(3))
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert left == []


def test_a_fork_that_is_killed_while_it_takes_over_its_past(rondo: Rondo, whole: Path) -> None:
    """Killed before it names its parent's candidates, it goes on with them, and does not sample its own."""
    done = rondo("fork", "whole@1", "--name", "torn", "--root", str(whole), kill="candidates:1:before")
    assert done.returncode == -signal.SIGKILL
    rondo("resume", "torn", "--root", str(whole))
    assert_same(whole, "whole", whole, "torn", range(3))
    shared = [file.path for entry in Store.open(whole).run("torn").entries(round=1) for file in entry.files]
    assert all(path.startswith("runs/whole/") for path in shared)


def test_sigterm_ends_a_run_in_order(environment: dict[str, str], tiny_recipe: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.cli.main",
        "run",
        str(tiny_recipe),
        "--name",
        "ended",
        "--root",
        str(tmp_path),
    ]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 120
        while not (family := _workers(run.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        run.terminate()
        _, messages = run.communicate(timeout=300)
    assert run.returncode == INTERRUPTED
    assert "'rondo resume ended' goes on" in messages
    assert "Traceback" not in messages
    _, alive = psutil.wait_procs(family, timeout=300)
    assert alive == []
    assert Store.open(tmp_path).run("ended").state == "stopped"


def _workers(pid: int) -> list[psutil.Process]:
    """The three workers, once all have started."""
    children = psutil.Process(pid).children(recursive=True)
    return children if len(children) >= 3 else []


def test_a_killed_worker_costs_only_its_work(rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path) -> None:
    """The trainer is killed in the middle of its update; Prefect tries the step again, and the run ends as ever."""
    arguments = ["run", str(tiny_recipe), "--name", "hurt", "--root", str(tmp_path)]
    rondo(*arguments, kill="finish_update:1:worker")
    assert_same(whole, "whole", tmp_path, "hurt", range(3))
