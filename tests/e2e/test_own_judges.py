"""Judges that a run makes itself: a reward model of its preferences, its policies' implicit reward, and people."""

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from storage.log.store import Store
from storage.queries.round_query import table
from storage.tables.shared_values import Labels
from support.forkserver import Done
from support.recipes import TINY
from support.view_page import CHROMIUM, Visitor, chromium, served

Rondo = Callable[..., Done]


def test_a_fork_hears_a_reward_model_of_the_run_and_is_watched_by_its_policy(
    rondo: Rondo, whole: Path, tmp_path: Path
) -> None:
    to = tmp_path / "model"
    options = ["--objective", "uncertainty", "--epochs", "3", "--learning-rate", "1e-3", "--json"]
    made = json.loads(rondo("train-judge", "whole@1-2", "--to", str(to), "--root", str(whole), *options).stdout)
    assert made == json.loads((to / "reward_model.json").read_text())
    assert "Reliability" in (to / "report.html").read_text()
    assert AutoModelForSequenceClassification.from_pretrained(to).config.id2label == {0: "mean", 1: "log_std"}
    store = Store.open(whole)
    run = store.run("whole")
    assert made["base"]["policy"] == run.rounds()[0].meta["policy"]
    assert made["data"][1]["files"]["preferences"] == [
        {"path": file.path, "sha256": file.sha256, "rows": file.rows} for file in run.files(2, "preferences")
    ]
    pairs = sum(table(store, run, number, "preferences")["kind"].to_pylist().count("pair") for number in (1, 2))
    assert made["pairs"] + made["calibration"]["pairs"] == pairs
    assert list(tmp_path.iterdir()) == [to]

    # In round 2 the implicit reward is that of round 1's policy, which round 1 has trained away from the initial one.
    judge = {"kind": "reward_model", "path": str(to), "gives_std": True}
    rondo(
        "fork", "whole@1", "--name", "learned", "--run", "--root", str(whole), "--rounds", "2",
        "--set", f"judge={json.dumps(judge)}", "--set", "preferences.soft_labels=true",
        "--set", "evaluation.judges=[{kind: implicit, beta: 0.5}]",
    )  # fmt: skip
    fork = store.run("learned")
    assert all(row["score_std"] > 0 for row in table(store, fork, 2, "judgments").to_pylist())
    preferred = table(store, fork, 2, "preferences").to_pylist()
    assert all(0.5 <= row["soft_label"] <= 1 for row in preferred if row["kind"] == "pair")
    names = [fork.rounds()[number].meta["policy"] for number in (1, 0)]
    for stage in ("eval_judgments", "baseline_judgments", "initial_judgments"):
        assert {str(entry.meta["policies"]) for entry in fork.entries(2, stage)} == {str([None, names])}
    implicit = {
        row["prompt_id"]: row["score"]
        for row in table(store, fork, 2, "eval_judgments").to_pylist()
        if row["judge"] == "implicit"
    }
    # The trainer has scored the same answers under the same two policies, packed in another order: float32.
    expected = {
        row["prompt_id"]: pytest.approx(0.5 * (row["previous"] - row["initial"]), abs=1e-3)
        for row in table(store, fork, 2, "eval_logps").to_pylist()
    }
    assert implicit == expected
    assert len(set(implicit.values())) == len(implicit) == 8


def test_a_run_waits_for_people_and_goes_on(
    rondo: Rondo, whole: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Killed after its first choice, the labelling has lost nothing; the run goes on when all have been made."""
    path = tmp_path / "recipe.yaml"
    judges: dict[str, Any] = {"judge": {"kind": "people"}, "evaluation": {"prompts": 8, "judges": [{"kind": "vader"}]}}
    path.write_text(yaml.safe_dump({**TINY, "rounds": 1, **judges}))
    waiting = rondo("run", str(path), "--name", "asked", "--root", str(whole), check=False)
    assert (waiting.returncode, waiting.stderr.count("error:")) == (3, 0)
    assert "waiting for 12 labels: rondo label asked@1, then rondo resume asked" in waiting.stderr

    command = [sys.executable, "-m", "flows.cli.main", "label", "asked@1", "--labeller", "ann", "--root", str(whole)]
    terminal, child = pty.openpty()
    keys = {**environment, "TERM": "xterm"}
    with subprocess.Popen(command, env=keys, stdin=child, stdout=child, stderr=child) as labelling:
        os.close(child)
        try:
            _read_until(terminal, "q quit")
            os.write(terminal, b"a")
            _read_until(terminal, "q quit")  # the next question: the choice has been kept
        finally:
            labelling.kill()
    os.close(terminal)
    store = Store.open(whole)
    (first,) = Labels(store).newest()
    assert (first["choice"], first["labeller"], first["run"], first["round"]) == ("better", "ann", "asked", 1)

    # The terminal and the browser take turns; without a browser the terminal does it all.
    typed = "a\nb\n" * 5 + "tie\n" if CHROMIUM is None else "a\nb\n" * 2 + "tie\nq\n"
    rest = subprocess.run(
        command, env=environment, input=typed, text=True, capture_output=True, check=True, timeout=900
    )
    if CHROMIUM is None:
        assert "11 answered, 0 left of asked@1" in rest.stdout
    else:
        _label_in_browser(whole, ["ArrowLeft", "b", "a", "ArrowRight", "a", "b"])
    rondo("resume", "asked", "--root", str(whole))
    run = store.run("asked")
    judged = table(store, run, 1, "judgments").to_pylist()
    assert sorted(row["score"] for row in judged if row["status"] == "ok") == [0.0] * 11 + [0.5] * 2 + [1.0] * 11
    kinds = table(store, run, 1, "preferences")["kind"].to_pylist()
    assert (kinds.count("pair"), kinds.count("dropped")) == (11, 1)


def _label_in_browser(root: Path, keys: Sequence[str]) -> None:
    """Says who labels, and presses a key for each pair that is open."""
    with served(root, "asked") as address, chromium() as browser:
        visitor = Visitor(browser, address.rpartition("/run/")[0])
        page = visitor.open("/run/asked")
        assert "Round 1 waits for people" in page.locator("main").inner_text()
        page.get_by_role("link", name="Label", exact=True).click()
        page.get_by_label("Who labels").fill("ann")
        page.get_by_role("button", name="Begin").click()
        for left, key in zip(range(len(keys), 0, -1), keys, strict=True):
            page.get_by_text(f"{left} left in this queue").wait_for()
            visitor.wait_for_keys()
            if left == len(keys):
                visitor.picture("label")
            page.keyboard.press(key)
        page.get_by_text("0 left in this queue").wait_for()
        assert visitor.complaints == []


def _read_until(terminal: int, text: str) -> None:
    seen = b""
    while text.encode() not in seen:
        assert select.select([terminal], [], [], 60)[0], seen
        seen += os.read(terminal, 4096)
