"""Metrics for TensorBoard, read back as it reads them, and for Weights & Biases, as its library is called."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flows.monitors.tracking import TensorBoardSink, Tracker, open_tracker
from pipeline.config import TrackingConfig
from pipeline.errors import ConfigError
from storage.log.store import Store
from support.recipes import TINY


def curve(directory: Path, series: str, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory / series), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(f"{series}/{name}")]


def rounds(tracker: Tracker, *, losses: dict[int, list[float]], first: dict[int, int] | None = None) -> None:
    """Rounds of 3 steps each: their steps from ``first`` on, with these losses, and their metrics."""
    for number, values in losses.items():
        start = (first or {}).get(number, 0)
        for step, loss in enumerate(values, start=start):
            tracker.step(number, 3 * (number - 1), {"step": step, "epoch": 0, "loss": loss})
        if start + len(values) == 3:
            tracker.round(number, 3 * number, {"round": number, "reward": number / 4, "judge": "vader"})


def test_steps_go_on_from_round_to_round_and_figures_stand_at_their_round(tmp_path: Path) -> None:
    with Tracker(TensorBoardSink(tmp_path)) as tracker:
        tracker.round(0, 0, {"round": 0, "reward": 0.0, "judges": {"grammar": 0.5}, "stopped": None, "alarms": []})
        rounds(tracker, losses={1: [0.75, 0.5, 0.25], 2: [0.5, 0.25, 0.125]})
    assert curve(tmp_path, "step", "loss") == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.5), (4, 0.25), (5, 0.125)]
    assert curve(tmp_path, "round", "reward") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert curve(tmp_path, "round", "judges/grammar") == [(0, 0.5)]


@pytest.mark.parametrize("first", [0, 1])
def test_what_a_killed_process_tracked_is_replaced(tmp_path: Path, first: int) -> None:
    """SIGKILL after two steps of round 2. It goes on with the first of them, or with the second from a saved state;
    what it then tracks twice has another value here, to tell the two apart.
    """
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "sys.path[:0] = ['tests/flows/monitors']\n"
        "from test_tracking import rounds\n"
        "from flows.monitors.tracking import TensorBoardSink, Tracker\n"
        f"tracker = Tracker(TensorBoardSink(Path({str(tmp_path)!r})))\n"
        "rounds(tracker, losses={1: [0.75, 0.5, 0.25], 2: [9.0, 9.5]})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", "tests"])}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which begin with the second
    with Tracker(TensorBoardSink(tmp_path)) as tracker:
        rounds(tracker, losses={2: [0.5, 0.25, 0.125][first:], 3: [0.1, 0.1, 0.1]}, first={2: first})
    expected = [0.75, 0.5, 0.25, *[9.0, 9.5][:first], *[0.5, 0.25, 0.125][first:], 0.1, 0.1, 0.1]
    assert curve(tmp_path, "step", "loss") == [(step, pytest.approx(value)) for step, value in enumerate(expected)]
    assert [number for number, _ in curve(tmp_path, "round", "reward")] == [1, 2, 3]


def test_a_worker_that_dies_in_an_update_leaves_no_step_twice(tmp_path: Path) -> None:
    with Tracker(TensorBoardSink(tmp_path)) as tracker:
        rounds(tracker, losses={1: [0.75, 0.5]})
        rounds(tracker, losses={1: [0.75, 0.5, 0.25]})
    assert [number for number, _ in curve(tmp_path, "step", "loss")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("config", "library"), [({"tensorboard": "board"}, "tensorboard"), ({"wandb_project": "project"}, "wandb")]
)
def test_a_missing_library_is_one_sentence(
    config: dict[str, str], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("flows.monitors.tracking.find_spec", lambda name: None if name == library else found(name))
    run = Store.open(tmp_path).create_run("r", {"recipe": TINY})
    with pytest.raises(
        ConfigError, match=rf"needs {library}, which is not installed: pip install 'rondo\[{library}\]'"
    ):
        open_tracker(TrackingConfig.model_validate(config), run)


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Store.open(tmp_path / "root").create_run("r", {"recipe": TINY})
    with pytest.raises(ConfigError, match=r"file.*give another directory"):
        open_tracker(TrackingConfig(tensorboard=str(tmp_path / "file")), run)


class StandInWandb:
    """The part of wandb that is used, with its rule: a row that is not above the last is dropped. The rows outlive a
    session, as they do on its server.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, dict[str, float]]] = {}
        self.started: list[dict[str, Any]] = []

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> Any:
        self.started.append(arguments)
        rows = self.rows.setdefault(arguments["id"], {})

        def log(metrics: dict[str, float], step: int) -> None:
            if step > max(rows, default=-1):
                rows[step] = metrics

        return SimpleNamespace(log=log, define_metric=lambda *_, **__: None, finish=lambda: None)


def test_rows_of_weights_and_biases_are_each_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the metrics of round 1 were tracked, and again within round 2."""
    wandb = StandInWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setattr("flows.monitors.tracking.find_spec", lambda _: True)
    run = Store.open(tmp_path).create_run("r", {"recipe": TINY})
    for losses in ({1: [0.75, 0.5, 0.25]}, {1: [0.75, 0.5, 0.25], 2: [0.5]}, {2: [0.5, 0.25, 0.125]}):
        tracker = open_tracker(TrackingConfig(wandb_project="project"), run)
        if len(wandb.started) == 1:
            tracker.round(0, 0, {"round": 0, "reward": 0.0})
        rounds(tracker, losses=losses)
    (rows,) = wandb.rows.values()
    assert sorted(rows) == list(range(9))
    assert [row["step/loss"] for row in rows.values() if "step" in row] == [0.75, 0.5, 0.25, 0.5, 0.25, 0.125]
    assert [row["step"] for row in rows.values() if "step" in row] == list(range(6))
    assert [row["round/reward"] for row in rows.values() if "round" in row] == [0.0, 0.25, 0.5]


def test_little_is_sent_to_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the recipe's text nor the command line, source, machine or environment, where a secret may stand."""
    wandb = StandInWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setattr("flows.monitors.tracking.find_spec", lambda _: True)
    run = Store.open(tmp_path).create_run("r", {"recipe": TINY})
    open_tracker(TrackingConfig(wandb_project="project"), run)
    (started,) = wandb.started
    assert started["config"] == {"recipe": "tiny", "seed": 7}
    assert (started["name"], started["resume"], started["project"]) == ("r", "allow", "project")
    settings = started["settings"]
    assert settings["console"] == "off"
    assert all(settings[name] for name in ("disable_code", "disable_git", "x_disable_meta", "x_disable_stats"))
