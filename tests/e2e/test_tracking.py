"""The curves of a run that was killed in an update are those in its store, each step once."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from storage.log.store import Store
from storage.tables.shards import read_table
from support.forkserver import Done

Rondo = Callable[..., Done]


def test_tracked_over_a_kill(rondo: Rondo, tiny_recipe: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    arguments = ("run", str(tiny_recipe), "--name", "tracked", "--root", str(tmp_path))
    assert (
        rondo(*arguments, "--set", f"tracking.tensorboard={board}", kill="finish_update:2:during").returncode
        == -signal.SIGKILL
    )
    rondo("resume", "tracked", "--root", str(tmp_path))
    store = Store.open(tmp_path)
    run = store.run("tracked")
    stored = [row for number in (1, 2) for row in read_table(store, run.files(number, "metrics")).to_pylist()]
    steps, rounds = (EventAccumulator(str(board / "tracked" / series)) for series in ("step", "round"))
    for name in ("loss", "reward_margin", "grad_norm", "learning_rate"):
        tracked = [(event.step, event.value) for event in steps.Reload().Scalars(f"step/{name}")]
        # Event files hold float32.
        assert tracked == [(number, pytest.approx(row[name], rel=1e-6)) for number, row in enumerate(stored)]
    tracked = [(event.step, event.value) for event in rounds.Reload().Scalars("round/reward")]
    assert tracked == [(entry.round, pytest.approx(entry.meta["reward"], rel=1e-6)) for entry in run.rounds()]
    assert len(tracked) == 3
