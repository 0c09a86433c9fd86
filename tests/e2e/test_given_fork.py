"""A fork that is trained anew on its parent's completions, as another judge sees them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.registry.resume import recipe_of
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table
from support.compare import assert_same
from support.forkserver import Done

Rondo = Callable[..., Done]


@pytest.fixture(scope="module")
def judged(rondo: Rondo, whole: Path) -> Path:
    """The root of the whole run, which was judged again: by another judge, and by its own under another name."""
    for judge in (("--judge", "length", "--set", "judge.target=20", "--name", "longer"), ("--name", "own")):
        rondo("rejudge", "whole", *judge, "--root", str(whole))
    return whole


def run_of(root: Path, name: str) -> Run:
    return Store.open(root).run(name)


def policy(run: Run, number: int) -> str:
    digest: str = run.rounds()[number].meta["policy"]
    return digest


def test_with_its_parents_judgments_a_fork_is_its_parent(rondo: Rondo, judged: Path) -> None:
    """Nothing is sampled for training, and every round ends with the very weights of the parent's."""
    parent = run_of(judged, "whole")
    sampled = {file.path for number in (1, 2) for file in parent.files(number, "candidates")}
    rondo("fork", "whole@2", "--name", "again", "--judgments", "own", "--run", "--root", str(judged))
    fork = run_of(judged, "again")
    assert {file.path for number in (1, 2) for file in fork.files(number, "candidates")} == sampled
    assert [policy(fork, number) for number in range(3)] == [policy(parent, number) for number in range(3)]
    for number in (1, 2):
        assert table(Store.open(judged), fork, number, "preferences").equals(
            table(Store.open(judged), parent, number, "preferences")
        )
        assert fork.rounds()[number].meta["first_loss"] == parent.rounds()[number].meta["first_loss"]
    assert rondo("verify", "again", "--root", str(judged)).returncode == 0


def test_another_judge_trains_another_policy_on_the_same_completions(rondo: Rondo, judged: Path) -> None:
    done = rondo("fork", "whole@2", "--name", "longer", "--judgments", "longer", "--root", str(judged))
    assert "has its completions, judged by 'longer', for rounds 1 to 2" in done.stdout.replace("\n", " ")
    options = ("--root", str(judged), "--set", "devices.cpu_threads=1")
    rondo("resume", "longer", *options)
    store, parent, fork = Store.open(judged), run_of(judged, "whole"), run_of(judged, "longer")
    for number in (1, 2):
        assert fork.files(number, "candidates") == parent.files(number, "candidates")
        assert fork.files(number, "judgments") == parent.annex("longer").files(number, "rejudgments")
        assert {row["judge"] for row in table(store, fork, number, "judgments").to_pylist()} == {"longer"}
    first, second = (fork.rounds()[number].meta for number in (1, 2))
    assert policy(fork, 1) != policy(parent, 1)
    # Round 1 is on-policy. Round 2 was sampled by the parent's policy of round 1, which is its reference.
    assert (first["reference"], first["off_policy"]) == (policy(parent, 0), None)
    assert (second["reference"], second["origin"]["sampled_by"]) == (policy(parent, 1), policy(parent, 1))
    assert second["first_loss_expected"] is None
    assert second["off_policy"] != 0
    assert second["off_policy_se"] > 0
    assert rondo("verify", "longer", "--root", str(judged)).returncode == 0
    # The fork names the weights of the policy that sampled, and pruning its parent leaves them.
    (kept,) = {file.path for file in fork.files(2, "sampler_policy") if file.path.endswith(".safetensors")}
    assert kept in {file.path for file in parent.files(1, "checkpoint")}
    planned = json.loads(rondo("prune", "whole", "--keep-last", "1", "--dry-run", "--json", *options[:2]).stdout)
    assert planned["for_forks"] == [1]
    assert [removal for removal in planned["removals"] if removal["stage"] == "checkpoint"] == []


@pytest.mark.parametrize(
    "kill", ["sampler_policy:2:before", pytest.param("checkpoint:2:before", marks=pytest.mark.nightly)]
)
def test_killed_and_resumed(rondo: Rondo, judged: Path, kill: str) -> None:
    """Either while it is given the completions, or in the round that is off-policy: the same weights, to the bit."""
    name = kill.partition(":")[0].replace("_", "-")
    if "longer" not in Store.open(judged).run_names():
        rondo("fork", "whole@2", "--name", "longer", "--judgments", "longer", "--run", "--root", str(judged))
    arguments = ("fork", "whole@2", "--name", name, "--judgments", "longer", "--run", "--root", str(judged))
    assert rondo(*arguments, kill=kill).returncode == -9
    rondo("resume", name, "--root", str(judged))
    assert_same(judged, "longer", judged, name, range(3))


def test_refusals(rondo: Rondo, judged: Path) -> None:
    def refused(*arguments: Any) -> str:
        done = rondo("fork", *arguments, "--name", "none", "--root", str(judged), check=False)
        assert done.returncode == 1
        return done.stderr.replace("\n", " ")

    assert "nothing beside it of the name 'nobody'" in refused("whole@2", "--judgments", "nobody")
    assert "round 0 of run 'whole' has no completions" in refused("whole@0", "--judgments", "longer")
    assert "cannot change seed: 7 -> 8" in refused("whole@2", "--judgments", "longer", "--set", "seed=8")
    assert "none" not in Store.open(judged).run_names()
    assert recipe_of(run_of(judged, "whole")).judge.label == "vader"
