"""A real run that is verified, pruned, gone on with, and damaged."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from typer.testing import CliRunner

from flows.analysis.pruning import rounds_with_weights
from flows.cli.main import app
from storage.log.store import Store
from support.forkserver import Done

Rondo = Callable[..., Done]


def test_a_run_that_is_pruned_goes_on(rondo: Rondo, whole: Path, tmp_path: Path) -> None:
    """Verified, pruned, resumed, shown and reported; then a bit of its newest checkpoint flips."""
    for part in ("runs/whole", "shared"):  # other tests fork the run, and what a fork names is not pruned
        shutil.copytree(whole / part, tmp_path / "root" / part)
    root = str(tmp_path / "root")
    store = Store.open(root)

    def here(*arguments: str) -> str:
        """A command that starts no process, in this one."""
        return CliRunner().invoke(app, [*arguments, "--root", root], catch_exceptions=False).stdout

    assert json.loads(here("verify", "whole", "--json"))["ok"]
    here("prune", "whole", "--keep-last", "1")
    assert rounds_with_weights(store.run("whole")) == [0, 2]

    rondo("resume", "whole", "--rounds", "3", "--root", root)
    run = store.run("whole")
    assert rounds_with_weights(run) == [0, 2, 3]
    assert "chosen" in here("show", "whole@1", "--table", "preferences", "--limit", "1")
    assert here("report", "whole").strip().endswith("report.html")
    found = json.loads(here("verify", "whole", "--json"))
    assert (found["ok"], found["good"], found["newest_checkpoint"]) == (True, [0, 1, 2, 3], 3)
    _check_lineage(json.loads(here("lineage", "whole", "--json"))[0])

    (path,) = (file.path for file in run.files(3, "checkpoint") if file.path.endswith(".safetensors"))
    weights = bytearray(Path(root, path).read_bytes())
    weights[-1] ^= 1
    Path(root, path).write_bytes(weights)
    refused = rondo("resume", "whole", "--rounds", "4", "--root", root, check=False)
    assert refused.returncode == 1
    assert "run 'whole' cannot go on" in refused.stderr
    assert "the newest good checkpoint is that of round 2: 'rondo fork whole@2 --name NEW' continues" in refused.stderr
    here("fork", "whole@2", "--name", "on", "--no-start")
    assert json.loads(here("verify", "on", "--json"))["ok"]


def _check_lineage(run: dict) -> None:
    rounds = run["rounds"]
    for before, after in pairwise(rounds):
        record, origin = after["record"], after["record"]["origin"]
        assert origin["sampled_by"] == record["reference"] == before["record"]["policy"]
        assert [judge["name"] for judge in origin["judges"]] == ["vader", "grammar"]
        assert origin["recipe"] == rounds[0]["record"]["origin"]["recipe"]
        assert origin["held_out"] == rounds[0]["record"]["origin"]["held_out"]
        assert after["session"]["packages"]["torch"]
        assert after["session"]["pid"]
    slices = [round["record"]["origin"]["prompts"] for round in rounds]
    assert slices[0] is None
    assert len(set(slices)) == len(slices), "every round samples other prompts"
    assert rounds[1]["session"]["pid"] != rounds[3]["session"]["pid"], "the last one was resumed by another process"
