"""The command line as a user meets it, on a small finished run."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from datasets import load_dataset

from storage.log.store import Store
from storage.tables.shards import read_table
from support.compare import assert_same
from support.forkserver import Done

Rondo = Callable[..., Done]
HANGS = 900  # seconds


def test_every_round_starts_at_ln_2(read_json: Callable[..., Any], whole: Path) -> None:
    """With the reference equal to the starting policy every reward is 0, and -log sigmoid(0) = ln 2."""
    rounds = read_json("rounds", "whole", "--root", str(whole))
    assert [summary["round"] for summary in rounds] == [0, 1, 2]
    for summary in rounds[1:]:
        # Sampler and trainer agree to about 1e-6 nats a token in float32; beta 0.1 and 20 tokens leave about 1e-6.
        assert summary["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert summary["reference_logprobs"] == "sampler"
        assert summary["handover_drift"] < 1e-4


def test_a_round_says_when_its_parts_worked(read_json: Callable[..., Any], whole: Path) -> None:
    found = read_json("timeline", "whole@2", "--root", str(whole))
    lanes = {lane["part"]: lane for lane in found["lanes"]}
    assert list(lanes) == ["sample", "judge", "update"]
    assert {lane["device"] for lane in lanes.values()} == {"cpu"}
    (summary,) = (row for row in read_json("rounds", "whole", "--root", str(whole)) if row["round"] == 2)
    tokens = {part: sum(span["tokens"] or 0 for span in lane["spans"]) for part, lane in lanes.items()}
    assert tokens["sample"] == pytest.approx(summary["sampled_tokens"])
    assert tokens["update"] == pytest.approx(summary["train_tokens"])
    assert all(0 < lane["busy"] <= found["seconds"] for lane in lanes.values())
    # Phased: the update begins when the last candidate is judged.
    training = {part: [span for span in lane["spans"] if span["kind"] == "training"] for part, lane in lanes.items()}
    # All that the trainer did for the update counts, with the checks before and the saving after its steps.
    (step_seconds,) = (entry.meta["seconds"] for entry in Store.open(whole).run("whole").entries(2, "checkpoint"))
    worked = sum(span["end"] - span["start"] for span in training["update"])
    assert summary["seconds"]["update"] == pytest.approx(worked, abs=1e-3)
    assert summary["seconds"]["update"] > step_seconds
    assert min(span["start"] for span in training["update"]) >= max(span["end"] for span in training["judge"])
    assert "Where the time goes" in (whole / "runs" / "whole" / "report.html").read_text()


def test_a_round_on_paper_is_of_the_size_of_a_real_one(
    read_json: Callable[..., Any], tiny_recipe: Path, whole: Path
) -> None:
    found = read_json("plan", str(tiny_recipe), "--calibrate", "whole@1", "--root", str(whole))
    metrics = {row["metric"]: row["value"] for row in found["metrics"]}
    measured = read_json("rounds", "whole", "--root", str(whole))[1]
    # Measured seconds of sampling are those of the held-out prompts too, whose shards are small and cost as much.
    assert 0.1 < metrics["sample"] / measured["seconds"]["sample"] < 1.5
    # The tokenizer may find fewer words than the vocabulary allows: its file and two matrices are then smaller.
    entries = Store.open(whole).run("whole").entries(round=2)
    kept = sum({file.path: file.bytes for entry in entries for file in entry.files}.values())
    assert 0.8 < metrics["store, round"] / kept < 1.5


def test_prompts_never_overlap(whole: Path) -> None:
    store = Store.open(whole)
    run = store.run("whole")
    prompts = read_table(store, run.files(0, "prompts")).to_pylist()
    by_split = {
        split: {row["prompt_id"] for row in prompts if row["split"] == split} for split in ("train", "evaluation")
    }
    assert by_split["train"].isdisjoint(by_split["evaluation"])
    sampled = {row["prompt_id"] for number in (1, 2) for row in _table(store, run, number, "candidates")}
    held_out = {row["prompt_id"] for row in _table(store, run, 2, "eval_candidates")}
    assert sampled <= by_split["train"]
    assert held_out == by_split["evaluation"]


def _table(store: Store, run: Any, number: int, stage: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(store, run.files(number, stage)).to_pylist()
    return rows


def test_a_finished_run_says_so(rondo: Rondo, tiny_recipe: Path, whole: Path) -> None:
    started = time.monotonic()
    again = rondo("run", str(tiny_recipe), "--name", "whole", "--root", str(whole), "--resume")
    assert "run 'whole' is finished: it has 2 rounds" in again.stdout
    assert str(whole / "runs" / "whole" / "report.html") in again.stdout
    assert time.monotonic() - started < 60  # no engine is started: a second or two, with room for a busy machine


def test_a_fork_without_changes_goes_the_same_way(rondo: Rondo, whole: Path) -> None:
    rondo("fork", "whole@1", "--name", "same", "--run", "--root", str(whole))
    assert_same(whole, "whole", whole, "same", range(3))
    run = Store.open(whole).run("same")
    shared = [file.path for entry in run.entries(round=1) for file in entry.files]
    assert shared
    assert all(path.startswith("runs/whole/") for path in shared), "a fork names its parent's files and copies none"


def test_a_fork_with_another_judge_judges_the_past_anew(rondo: Rondo, whole: Path) -> None:
    """Round 0's held-out answers are the parent's; their scores under the new judge are the fork's own."""
    rondo(
        "fork", "whole@1", "--name", "judged", "--run", "--root", str(whole),
        "--set", "judge.kind=grammar", "--set", "evaluation.judges=[]", "--set", "preferences.min_margin=0.0",
    )  # fmt: skip
    run = Store.open(whole).run("judged")
    assert [entry.key.inputs for entry in run.entries(round=2, stage="eval_candidates") if entry.key]
    for of in ("baseline", "initial"):
        assert len(run.entries(round=2, stage=f"{of}_judgments")) == 2, (
            "two shards of round 1's answers, or of round 0's"
        )
        assert run.entries(round=2, stage=f"{of}_candidates") == [], "nothing is sampled again"
    summary = run.rounds()[2].meta
    assert 0 <= summary["win_rate_initial"] <= 1


def test_show_reads_with_sql(read_json: Callable[..., Any], rondo: Rondo, whole: Path) -> None:
    condition = "score > 0.1 and finish_reason = 'length'"
    rows = read_json("show", "whole@1", "--root", str(whole), "--where", condition, "--limit", "1000")
    store = Store.open(whole)
    run = store.run("whole")
    scores = {(row["prompt_id"], row["candidate"]): row["score"] for row in _table(store, run, 1, "judgments")}
    expected = [
        (row["prompt_id"], row["candidate"])
        for row in _table(store, run, 1, "candidates")
        if row["finish_reason"] == "length" and scores[row["prompt_id"], row["candidate"]] > 0.1
    ]
    assert sorted((row["prompt_id"], row["candidate"]) for row in rows) == sorted(expected)
    assert expected
    one = read_json("show", "whole@1", "--root", str(whole), "--table", "judgments", "--prompt", expected[0][0][:6])
    assert {row["prompt_id"] for row in one} == {expected[0][0]}
    people = rondo("show", "whole@1", "--root", str(whole), "--table", "preferences", "--limit", "2").stdout
    assert "chosen" in people


def test_export_is_read_by_datasets(rondo: Rondo, read_json: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    rondo("export", "whole@1", "--truncated", "--to", str(tmp_path / "pairs"), "--root", str(whole))
    pairs = load_dataset(str(tmp_path / "pairs"), split="train", cache_dir=str(tmp_path / "cache"))
    preferences = read_json("rounds", "whole", "--root", str(whole))[1]["preferences"]
    assert len(pairs) == preferences
    assert pairs[0]["prompt"][-1]["role"] == "user"
    assert pairs[0]["chosen"][0]["role"] == "assistant"
    assert all(row["score_chosen"] > row["score_rejected"] for row in pairs)


def test_the_report_is_one_file_that_needs_no_other(rondo: Rondo, whole: Path) -> None:
    path = Path(rondo("report", "whole", "--root", str(whole)).stdout.strip())
    text = path.read_text()
    assert "<svg" in text
    assert not [word for word in ("<link", 'src="http', "@import", "<script src") if word in text]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "{recipe}", "--name", "whole"], "run 'whole' is already there"),
        (["run", "{recipe}", "--name", "whole", "--resume", "--set", "update.beta=9"], "update.beta: 0.1 -> 9"),
        (["run", "{recipe}", "--name", "../out"], "'../out' is no run name"),
        (["run", "nowhere.yaml"], "there is no recipe 'nowhere.yaml'"),
        (["resume", "whle"], "did you mean 'whole'?"),
        (["fork", "whole@7", "--name", "new"], "round 7 of run 'whole' is not finished: it has rounds 0 to 2"),
        (["fork", "whole@soon", "--name", "new"], "'whole@soon' is not RUN@ROUND"),
        (["fork", "whole@1", "--name", "new", "--set", "prompts.train=63"], "cannot change prompts.train: 64 -> 63"),
        (["show", "whole@1", "--where", "scre > 1"], "scre"),
        (["show", "whole@1", "--where", "1=1; drop table x"], "Parser Error"),
        (["export", "whole@1", "--to", "{recipe}"], "is already there"),
        (["report", "whole", "--picture", "{recipe}/curves.svg"], "curves.svg' cannot be written"),
        (["serve", "{recipe}"], "needs --cron, --interval or --rrule"),
        (["serve", "{recipe}", "--cron", "often"], "'often' is no cron expression"),
        (["serve", "{recipe}", "--rrule", "FREQ=OFTEN"], "'FREQ=OFTEN' is no recurrence rule"),
        (["deploy", "{recipe}", "--cron", "0 3 * * *", "--interval", "5"], "leave the others out"),
    ],
)
def test_a_users_mistake_is_one_sentence(
    rondo: Rondo, tiny_recipe: Path, whole: Path, arguments: list[str], sentence: str
) -> None:
    filled = [argument.format(recipe=tiny_recipe) for argument in arguments]
    done = rondo(*filled, "--root", str(whole), check=False)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not re.fullmatch(r".*  \d+ s", line)]  # that it still works
    assert said[0].startswith("error: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.nightly
def test_a_schedule_adds_rounds_to_one_run(environment: dict[str, str], tiny_recipe: Path, tmp_path: Path) -> None:
    """Every 5 s a scheduled run adds a round; Ctrl-C ends the schedule, its workers and its server."""
    alone = {key: value for key, value in environment.items() if key != "PREFECT_API_URL"}
    command = [
        sys.executable,
        "-m",
        "flows.cli.main",
        "serve",
        str(tiny_recipe),
        "--interval",
        "5",
        "--root",
        str(tmp_path),
    ]
    with subprocess.Popen(command, env=alone, stderr=subprocess.PIPE, text=True, start_new_session=True) as schedule:
        try:
            deadline = time.monotonic() + HANGS
            while _rounds_done(tmp_path) < 2 and time.monotonic() < deadline:
                time.sleep(1)
            family = psutil.Process(schedule.pid).children(recursive=True)
        finally:
            schedule.send_signal(signal.SIGINT)
            _, messages = schedule.communicate(timeout=HANGS)
    assert _rounds_done(tmp_path) >= 2, messages
    _, alive = psutil.wait_procs(family, timeout=HANGS)
    assert alive == []
    assert "Traceback" not in messages


def _rounds_done(root: Path) -> int:
    store = Store.open(root)
    return max(len(store.run(name).rounds()) - 1 for name in store.run_names()) if store.run_names() else -1


def test_json_is_json(rondo: Rondo, whole: Path) -> None:
    runs = json.loads(rondo("runs", "--root", str(whole), "--json").stdout)
    assert {"run": "whole", "recipe": "tiny", "rounds": "2/2", "state": "finished"}.items() <= runs[-1].items()
