"""A judge that is gamed on purpose: it pays for short completions, and the gate asks for long ones.

The gate stops the run, or goes back and takes smaller steps; a run that is killed in the middle ends the same.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.errors import RunNotFoundError
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.shards import read_table
from support.compare import assert_same
from support.forkserver import Done
from support.recipes import TINY

Rondo = Callable[..., Done]

GAMED: dict[str, Any] = {
    **TINY,
    "name": "gamed",
    "rounds": 3,
    "policy": {**TINY["policy"], "steps": 10},
    "sampling": {**TINY["sampling"], "prompts_per_round": 8, "shard_prompts": 4},
    "judge": {"kind": "length", "target": 1, "unit": "tokens"},
    "update": {**TINY["update"], "learning_rate": 5e-3},
    "evaluation": {"prompts": 4},
    "gate": {
        "prompts": {"source": "generated", "corpus": "film_reviews"}, "count": 16,
        "judges": [{"kind": "regex", "pattern": r"(?s).{12}", "name": "long"}], "text_tokens": 256, "window": 16,
        "text_tolerance": 10.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def gamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's file, beside the text that it names; runs lie beside it."""
    directory = tmp_path_factory.mktemp("gate")
    text = directory / "text.txt"
    text.write_text("The film was good, and the cast was better than the plot of the book. " * 40)
    (directory / "gamed.yaml").write_text(yaml.safe_dump({**GAMED, "gate": {**GAMED["gate"], "text": str(text)}}))
    return directory


@pytest.fixture(scope="module")
def stopped(rondo: Rondo, gamed: Path) -> Done:
    return rondo("run", str(gamed / "gamed.yaml"), "--name", "stopped", "--root", str(gamed))


def opened(root: Path, name: str) -> Run:
    return Store.open(root).run(name)


def gates(run: Run) -> list[dict[str, Any]]:
    return [entry.meta["gate"] for entry in run.rounds()]


def test_the_gate_stops_a_run_whose_judge_is_gamed(rondo: Rondo, gamed: Path, stopped: Done) -> None:
    root, run = ["--root", str(gamed)], opened(gamed, "stopped")
    first, second, last = gates(run)
    assert [gate["passed"] for gate in (first, second, last)] == [True, True, False]
    assert (first["ends"], second["ends"], last["ends"]) == (None, None, "failures")
    long, text = last["measures"]
    assert (long["name"], long["best"], long["prompts"], long["failed"]) == ("long", 0, 16, True)
    assert long["mean"] < long["best_mean"] == first["measures"][0]["mean"]
    assert long["loss"] <= last["level"] == pytest.approx(0.05 / (3 * 2))
    assert (text["name"], text["prompts"], text["failed"]) == ("text", 16, False)
    assert run.rounds()[2].meta["reward"] > run.rounds()[0].meta["reward"], "the judge itself is content"
    assert "stopped after round 2 of 3: gate failed: long fell from" in " ".join(stopped.stdout.split())
    assert "alarm in round 2: gate failed" in " ".join((stopped.stdout + stopped.stderr).split())

    found = rondo("checkpoint", "stopped", *root)
    assert "/rounds/0001/" in found.stdout, "what a gated run gives away is the last good policy"
    assert "round 1 is the last good one" in found.stderr
    named = rondo("checkpoint", "stopped@2", *root)
    assert "/rounds/0002/" in named.stdout, "what is named is given"
    assert "round 2 failed its gate" in named.stderr
    assert "failed" in rondo("rounds", "stopped", *root).stdout
    assert '"ok": true' in rondo("verify", "stopped", *root, "--json").stdout
    listed = next(row for row in json.loads(rondo("runs", *root, "--json").stdout) if row["run"] == "stopped")
    assert (listed["reward"], listed["state"]) == (run.rounds()[1].meta["reward"], "stopped")
    shown = json.loads(
        rondo("show", "stopped@2", "--table", "gate_completions", *root, "--json", "--limit", "99").stdout
    )
    assert len(shown) == 16
    assert all(row["prompt"] for row in shown)


EVERYWHERE = (
    "gate_prompts:0:after", "gate_text:1:before", "candidates:2:after", "checkpoint:2:before", "gate_text:2:after",
    "gate_candidates:2:after", "gate_judgments:2:after",
)  # fmt: skip


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    "kills", [["gate_text:2:after"], pytest.param(EVERYWHERE, marks=pytest.mark.nightly)], ids=["once", "everywhere"]
)
def test_killed_in_a_gated_round_and_in_the_gate(rondo: Rondo, gamed: Path, kills: list[str]) -> None:
    name, root = f"killed-{len(kills)}", ["--root", str(gamed)]
    command = ["run", str(gamed / "gamed.yaml"), "--name", name]
    for kill in kills:
        assert rondo(*command, *root, kill=kill).returncode == -9
        command = ["resume", name]
    rondo("resume", name, *root)
    assert_same(gamed, "stopped", gamed, name, range(3))


RETRY = ["gate.on_failure=retry", "gate.learning_rate_factor=0.001", "gate.beta_factor=2"]


@pytest.fixture(scope="module")
def retrying(gamed: Path) -> list[str]:
    """The command of a run whose gate has it try again, but for its name."""
    return ["run", str(gamed / "gamed.yaml"), "--root", str(gamed), *(w for change in RETRY for w in ("--set", change))]


@pytest.fixture(scope="module")
def retried(rondo: Rondo, gamed: Path, retrying: list[str]) -> Run:
    rondo(*retrying, "--name", "retried")
    return opened(gamed, "retried")


def test_retry_goes_back_and_takes_smaller_steps(rondo: Rondo, gamed: Path, retried: Run) -> None:
    root, run = ["--root", str(gamed)], retried
    policies = [entry.meta["policy"] for entry in run.rounds()]
    assert [gate["passed"] for gate in gates(run)] == [True, True, False, True]
    last = run.rounds()[3].meta
    assert (last["reference"], last["origin"]["sampled_by"]) == (policies[1], policies[1]), "and not round 2's"
    assert abs(last["kl_previous"]) < 0.01 < last["kl_initial"], "the round before is the one that it started from"
    rates = [
        max(read_table(Store.open(gamed), run.files(number, "metrics"))["learning_rate"].to_pylist())
        for number in (1, 3)
    ]
    assert rates[0] == pytest.approx(5e-3)
    assert 0 < rates[1] <= 5e-6 * (1 + 1e-9), "a step that is not whole has its share of the rate"
    assert (last["gate"]["learning_rate"], last["gate"]["beta"]) == (pytest.approx(5e-6), pytest.approx(0.2))
    assert '"ok": true' in rondo("verify", "retried", *root, "--json").stdout


@pytest.mark.nightly
@pytest.mark.usefixtures("retried")
def test_killed_in_a_round_that_tries_again(rondo: Rondo, gamed: Path, retrying: list[str]) -> None:
    root, command = ["--root", str(gamed)], [*retrying, "--name", "again"]
    for kill in ("gate_judgments:2:after", "candidates:3:after", "checkpoint:3:before", "gate_candidates:3:after"):
        assert rondo(*command, kill=kill).returncode == -9
        command = ["resume", "again", *root]
    rondo("resume", "again", *root)
    assert_same(gamed, "retried", gamed, "again", range(4))


@pytest.mark.nightly
def test_forks_of_a_run_that_tried_again(rondo: Rondo, gamed: Path, retried: Run) -> None:
    """A fork at the round that failed says where it goes on, and does, also without a gate of its own."""
    root, policies = ["--root", str(gamed)], [entry.meta["policy"] for entry in retried.rounds()]
    forked = rondo("fork", "retried@2", "--name", "forked", *root, "--set", "gate=null")
    assert "round 2 failed its gate, so that the next one starts from round 1" in " ".join(forked.stdout.split())
    rondo("prune", "retried", "--keep-last", "1", *root)
    rondo("resume", "forked", *root)
    assert opened(gamed, "forked").rounds()[3].meta["origin"]["sampled_by"] == policies[1]
    assert '"ok": true' in rondo("verify", "forked", *root, "--json").stdout

    # One with another gate begins to compare with the round that it starts from, whose answers it samples.
    changes = ["gate.count=20", "gate.patience=9", "update.learning_rate=1.0e-9"]
    forking = ["fork", "retried@1", "--name", "other", "--rounds", "3", "--run", *root]
    rondo(*forking, *[word for change in changes for word in ("--set", change)])
    other = opened(gamed, "other")
    assert [(gate["passed"], gate["since"]) for gate in gates(other)[2:]] == [(True, 2), (True, 2)]
    for gate in gates(other)[2:]:
        long, _, reward = gate["measures"]
        assert (long["prompts"], long["best"], long["mean"]) == (20, 1, long["best_mean"]), "the same answers"
        assert (reward["name"], reward["prompts"], reward["best"]) == ("reward", 4, 1)
    assert other.files(2, "gate_baseline_candidates")
    assert not other.files(3, "gate_baseline_candidates"), "they are found in the round before"
    assert '"ok": true' in rondo("verify", "other", *root, "--json").stdout


def test_patience_ends_a_run_that_gains_nothing(rondo: Rondo, gamed: Path) -> None:
    """Steps that change nothing gain nothing: two rounds are enough of five, and more are run if somebody asks."""
    root = ["--root", str(gamed)]
    changes = ["gate={patience: 2}", "update.learning_rate=1.0e-9", "rounds=5"]
    done = rondo(
        "run", str(gamed / "gamed.yaml"), "--name", "patient", *root, *[w for c in changes for w in ("--set", c)]
    )
    says = (
        "run 'patient' is finished with round 2 of 5, as gate.patience says: no gain in held-out reward since round 0"
    )
    assert says in " ".join(done.stdout.split())
    assert {row["run"]: row["state"] for row in json.loads(rondo("runs", *root, "--json").stdout)}[
        "patient"
    ] == "finished"
    assert says.replace("2 of 5", "2 of 2") in " ".join(rondo("resume", "patient", *root).stdout.split())
    rondo("resume", "patient", "--rounds", "3", *root)
    assert len(opened(gamed, "patient").rounds()) == 4


def test_a_task_of_lm_eval_is_a_measure(rondo: Rondo, gamed: Path, tmp_path: Path) -> None:
    """Its scores are paired with those of the best round; data that are gone end the run before any work."""
    pytest.importorskip("lm_eval")
    data, task = tmp_path / "films.jsonl", tmp_path / "films.yaml"
    rows = ({"text": f"The film {number} was", "choices": ["good", "bad"], "answer": number % 2} for number in range(9))
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    content = {
        "task": "films", "dataset_path": "json", "dataset_kwargs": {"data_files": str(data)}, "test_split": "train",
        "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    task.write_text(yaml.safe_dump(content))
    root, gate = ["--root", str(tmp_path)], f"gate={{tasks: [{task}]}}"
    command = ["run", str(gamed / "gamed.yaml"), *root, "--set", gate, "--set", "rounds=1"]
    rondo(*command, "--name", "asked")
    run = opened(tmp_path, "asked")
    first, last = (gate["measures"] for gate in gates(run))
    assert [(one["name"], one["prompts"], one["best"]) for one in (*first, *last)] == [
        ("films", 9, None),
        ("films", 9, 0),
    ]
    for round, (measure,) in enumerate((first, last)):
        scores = read_table(Store.open(tmp_path), run.files(round, "gate_tasks"))["score"].to_pylist()
        assert set(scores) <= {0.0, 1.0}
        assert measure["mean"] == pytest.approx(sum(scores) / 9)
    assert last[0]["best_mean"] == first[0]["mean"]
    assert '"ok": true' in rondo("verify", "asked", *root, "--json").stdout
    data.unlink()
    refused = rondo(*command, "--name", "refused", check=False)
    assert refused.returncode != 0
    assert "lm-eval cannot load" in " ".join((refused.stdout + refused.stderr).split())
    with pytest.raises(RunNotFoundError):  # its name is free
        opened(tmp_path, "refused")
