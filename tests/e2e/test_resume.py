"""A run that is killed in every stage and resumed ends as the run that nothing interrupted."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil

from support.compare import assert_same

Rondo = Callable[..., subprocess.CompletedProcess[str]]

KILLS = (
    "prepare_policy:0:during", "checkpoint:0:before", "checkpoint:0:after", "prompts:0:before", "probe:0:after",
    "handover:0:before", "eval_candidates:0:after", "eval_judgments:0:before",
    "candidates:1:before", "candidates:1:after", "judgments:1:before", "judgments:1:after",
    "preferences:1:before", "preferences:1:after", "update:1:during", "metrics:1:after", "probe:1:after",
    "checkpoint:1:before", "checkpoint:1:after", "handover:1:after", "eval_candidates:1:before",
    "eval_logps:1:before", "eval_logps:1:after", "candidates:2:after", "update:2:during",
)  # fmt: skip


def test_killed_in_every_stage(rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path) -> None:
    """One run is killed 25 times on its way, each time further on, and loses nothing."""
    arguments = ["run", str(tiny_recipe), "--name", "killed", "--root", str(tmp_path)]
    for kill in KILLS:
        done = rondo(*arguments, kill=kill)
        assert done.returncode == -signal.SIGKILL, f"{kill} was not reached: {done.stderr}"
        arguments = ["resume", "killed", "--root", str(tmp_path)]
    rondo(*arguments)
    assert_same(whole, "whole", tmp_path, "killed", range(3))
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert left == []


def test_a_killed_worker_costs_only_its_work(rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path) -> None:
    """The trainer is killed in the middle of its update; Prefect tries the step again, and the run ends as ever."""
    arguments = ["run", str(tiny_recipe), "--name", "hurt", "--root", str(tmp_path)]
    rondo(*arguments, kill="update:1:worker")
    assert_same(whole, "whole", tmp_path, "hurt", range(3))
