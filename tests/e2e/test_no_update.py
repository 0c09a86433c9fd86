"""Rounds in which no prompt gives a preference: finished without an update, killed, resumed, forked and stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.log.store import Store
from support.compare import assert_same
from support.forkserver import Done, ForkServer
from support.recipes import TINY

# The judge finds in no completion what it looks for, so that all of them fail.
RECIPE: dict[str, Any] = {
    **TINY,
    "name": "failing",
    "policy": {**TINY["policy"], "steps": 10},
    "sampling": {**TINY["sampling"], "prompts_per_round": 4, "candidates": 2, "shard_prompts": 2},
    "judge": {"kind": "regex", "pattern": "no film has this"},
    "update": {**TINY["update"], "optimizer_state": "carried", "reference": "ema"},
    "evaluation": {"prompts": 4, "serving": {}},
}
POLICY_STAGES = (
    "checkpoint", "probe", "eval_candidates", "eval_judgments", "served_candidates", "served_judgments"
)  # fmt: skip
Rondo = Callable[..., Done]


@pytest.fixture(scope="module")
def rondo(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Rondo:
    """The command line in processes of its own, that are forked."""
    directory = tmp_path_factory.mktemp("f")

    def call(*arguments: str, module: str = "flows.cli.main", code: int = 0) -> Done:
        done = forks.run(module, *arguments, directory=directory)
        assert done.returncode == code, done.stderr + done.stdout
        return done

    return call


def test_rounds_without_preferences(rondo: Rondo, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    root = ["--root", str(tmp_path)]
    whole = rondo("run", str(recipe), "--name", "whole", *root)
    assert "alarm in round 2: no update, and the policy stays what it was: all failed" in whole.stdout + whole.stderr
    store = Store.open(tmp_path)
    run = store.run("whole")
    for number in (1, 2):
        meta = run.rounds()[number].meta
        assert meta["no_update"].startswith("all failed: every completion that was judged is wrong (of 4 prompts 4 ")
        assert (meta["policy"], meta["steps"], meta["preferences"]) == (run.rounds()[0].meta["policy"], 0, 0)
        assert (meta["win_rate_previous"], meta["kl_previous"], meta["kl_initial"]) == (0.5, 0.0, 0.0)
        for stage in POLICY_STAGES:
            assert run.files(number, stage) == run.files(0, stage), "by reference: nothing is sampled or copied again"
        assert not run.files(number, "metrics")
    assert '"ok": true' in rondo("verify", "whole", *root, "--json").stdout
    assert "base rate 0: none of 4 held-out answers" in run.rounds()[0].meta["alarms"][0]
    served = run.rounds()[0].meta["served"]
    assert (served["reward"], served["judges"]) == (0.0, {})
    shown = rondo("show", "whole@2", "--table", "served_completions", *root, "--json").stdout
    assert len({row["prompt_id"] for row in json.loads(shown)}) == 4
    assert "as served" in rondo("rounds", "whole", *root).stdout
    assert "no update" in (tmp_path / "runs" / "whole" / "report.html").read_text()
    assert "round 1 had no update: all failed" in " ".join(rondo("show", "whole@1", *root).stdout.split())

    command = ["run", str(recipe), "--name", "killed"]
    for kill in ("served_candidates:0:after", "served_judgments:0:before", "checkpoint:1:after"):
        rondo(kill, *command, *root, module="support.killed", code=-9)
        command = ["resume", "killed"]
    rondo("resume", "killed", *root)
    assert_same(tmp_path, "whole", tmp_path, "killed", range(3))

    stopped = rondo("run", str(recipe), "--name", "stops", *root, "--set", "preferences.on_none=stop")
    assert "stopped after round 1 of 2, as preferences.on_none says: all failed" in stopped.stdout
    assert len(store.run("stops").rounds()) == 2
    assert store.run("stops").state == "stopped"

    # With a judge that tells completions apart the next round learns, from the policy that was kept.
    judge = "judge={kind: length, target: 12, unit: characters}"
    rondo("fork", "whole@1", "--name", "learns", "--run", *root, "--set", judge)
    rondo("resume", "learns", *root)
    learned = store.run("learns")
    last = learned.rounds()[2].meta
    assert last["no_update"] is None
    assert last["preferences"] > 0
    assert last["first_loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert last["reference"] == run.rounds()[0].meta["policy"] != last["policy"]
    assert '"ok": true' in rondo("verify", "learns", *root, "--json").stdout
