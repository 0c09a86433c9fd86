"""train-judge: what it refuses before work starts. What it makes is tested on a real run, end to end."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.analysis.sources import find_rounds
from flows.analysis.train_judge import train_judge, training_settings
from flows.cli.main import app
from flows.report.judge_report import judge_report
from pipeline.errors import ConfigError, DataError, RondoError
from pipeline.reward_model.calibration import calibrate
from pipeline.reward_model.config import RewardTrainingConfig
from storage.errors import RunNotFoundError
from storage.log.store import Store
from support.finished_run import finished_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "runs")
    finished_run(store)
    return store


def test_rounds_are_named(store: Store) -> None:
    for source, rounds in {"small": [1, 2, 3], "small@2": [2], "small@1-2": [1, 2], "small@3,1-2,2": [1, 2, 3]}.items():
        found = find_rounds(store, source)
        assert (found.run.name, found.rounds) == ("small", rounds)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("small@4", "round 4 of run 'small' is not finished: it has preferences of rounds 1 to 3"),
        ("small@2-9", "round 9 of run 'small' is not finished"),
        ("small@0", "round 0 of run 'small' has no preferences: they begin with round 1"),
        ("small@", "'small@' is not RUN@ROUNDS"),
        ("small@last", "is not RUN@ROUNDS"),
        ("small@3-1", "names no round: give the smaller number first"),
    ],
)
def test_rounds_that_are_not_there(store: Store, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_rounds(store, source)


def test_what_is_refused_before_work_starts(store: Store, tmp_path: Path) -> None:
    def train(source: str, to: Path = tmp_path / "to") -> None:
        train_judge([source], to, None, RewardTrainingConfig(), store.root)

    with pytest.raises(RunNotFoundError, match="did you mean 'small'"):
        train("smal")
    with pytest.raises(DataError, match="preferences over 3 prompts are too few"):
        train("small")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is already there, and not an empty directory"):
        train("small", tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "runs"]


def test_settings_out_of_their_range_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"--learning-rate 3\.0: Input should be less than or equal to 1"):
        training_settings(learning_rate=3.0)
    with pytest.raises(ConfigError, match="--device tpu"):
        training_settings(device="tpu")


def test_the_page_escapes_what_others_wrote() -> None:
    calibration = calibrate([0.9, 0.6, 0.3, 0.99])
    record = {
        "objective": "bradley_terry", "base": "<script>alert(1)</script>", "pairs": 10, "ratings": 0, "prompts": 10,
        "held_out_prompts": 4, "first_loss": 0.7, "last_loss": 0.1, "steps": 3, "data": [],
        "calibration": vars(replace(calibration)),
    }  # fmt: skip
    page = judge_report("<b>judge</b>", record, calibration)
    assert "<script" not in page
    assert "&lt;b&gt;judge&lt;/b&gt;" in page
    assert "75.0%" in page  # three of four are right
    assert 'aria-label="Reliability on held-out prompts' in page


def test_labels_of_a_finished_round_through_the_terminal(store: Store) -> None:
    """The pairs of its preferences; answers that hold control characters or markup are shown, and not obeyed."""
    finished_run(store, "sly", text=lambda *key: f" [red]choose me[/red] \x1b[2J {key}")

    def label(*typed: str, source: str = "sly@2") -> str:
        arguments = ["label", source, "--labeller", "ann", "--root", store.root]
        done = CliRunner().invoke(app, arguments, input="\n".join(typed))
        assert done.exit_code == 0, done.output
        return done.output

    shown = label("a", "nonsense", "b", "undo", "skip", "quit")
    assert r"\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "[red]choose me[/red]" in shown
    assert "2 answered, 1 left of sly@2" in shown
    again = label("tie")
    assert "1 of 1" in again  # nothing is asked twice
    assert "1 answered, 0 left" in again
    assert "0 answered, 0 left" in label()
    failed = CliRunner().invoke(app, ["label", "sly@7", "--root", store.root])
    assert "there is nothing to label" in str(failed.exception)
    wrong = CliRunner().invoke(app, ["label", "sly@soon", "--root", store.root])
    assert isinstance(wrong.exception, RondoError)
