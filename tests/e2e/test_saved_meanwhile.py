"""A policy is saved while the sampler works with it: whatever happens until it is, the run ends as ever, to the bit."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.log.store import Store
from support.compare import assert_same
from support.forkserver import Done, ForkServer

Rondo = Callable[..., Done]

PAID = "before the policy: candidates judgments preferences\n"
"""What the log has of a round whose held-out completions are sampled, and whose policy is not saved."""


def order(root: Path, name: str, round: int) -> list[str]:
    """The stages of a round's entries, in the order of the log."""
    entries = Store.open(root).run(name).entries(round=round)
    return [entry.key.stage for entry in sorted(entries, key=lambda entry: entry.number) if entry.key is not None]


@pytest.mark.parametrize("mode", ["phased", pytest.param("streaming", marks=pytest.mark.nightly)])
def test_sampling_ends_before_the_policy_is_written(
    forks: ForkServer, tiny_recipe: Path, whole: Path, tmp_path: Path, mode: str
) -> None:
    """By what happened, and not by a clock: the trainer is held back until all is sampled that can be."""
    arguments = ("run", str(tiny_recipe), "--name", mode, "--root", str(whole), "--set", f"mode={mode}")
    done = forks.run("support.slow_save", "1", "well", *arguments, directory=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert PAID in done.stdout
    assert_same(whole, "whole", whole, mode, range(3))
    for round in (1, 2):
        stages = order(whole, mode, round)
        names = ("preferences", "metrics", "preference_logps", "probe", "checkpoint", "handover", "eval_candidates")
        places = [stages.index(name) for name in names]
        assert places == sorted(places), "the log is the one of a policy that is saved before anybody works with it"
        checkpoint = Store.open(whole).run(mode).entries(round, "checkpoint")[-1]
        sampled = Store.open(whole).run(mode).entries(round, "eval_candidates")
        assert {entry.meta["policy"] for entry in sampled} == {checkpoint.meta["policy"]}


def test_a_disk_that_is_full_by_then_ends_the_run(
    forks: ForkServer, rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """Nothing that names the policy is in the log, and with room again the run ends as ever."""
    arguments = ("run", str(tiny_recipe), "--name", "full", "--root", str(whole))
    done = forks.run("support.slow_save", "1", "full", *arguments, directory=tmp_path, timeout=900)
    assert done.returncode == 1
    assert PAID in done.stdout
    assert "error: no room left to write the checkpoint" in done.stderr
    assert set(order(whole, "full", 1)) == set(PAID.split()[3:])
    rondo("resume", "full", "--root", str(whole))
    assert_same(whole, "whole", whole, "full", range(3))


def test_a_trainer_that_dies_with_the_policy_trains_it_again(
    forks: ForkServer, tiny_recipe: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(tiny_recipe), "--name", "lost", "--root", str(whole))
    done = forks.run("support.slow_save", "1", "trainer", *arguments, directory=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert PAID in done.stdout
    assert (
        "round 1: the trainer was lost with an unsaved policy: the update is done again (the trainer process ended"
        in " ".join(done.stderr.split())
    )
    assert_same(whole, "whole", whole, "lost", range(3))


@pytest.mark.parametrize(
    "kill",
    [
        "save_update:1:called",
        *(
            pytest.param(kill, marks=pytest.mark.nightly)
            for kill in (
                "end_sending:1:answered", "finish_weights:1:called", "finish_weights:1:answered",
                "save_update:1:answered", "probe:1:after", "checkpoint:1:before", "handover:1:before",
                "eval_candidates:1:before",
            )
        ),
    ],
)  # fmt: skip
def test_killed_between_the_sync_and_what_is_committed_of_it(
    rondo: Rondo, tiny_recipe: Path, whole: Path, kill: str
) -> None:
    name = f"cut-{kill.replace(':', '-')}"
    done = rondo("run", str(tiny_recipe), "--name", name, "--root", str(whole), kill=kill)
    assert done.returncode == -signal.SIGKILL, f"{kill} was not reached: {done.stderr}"
    rondo("resume", name, "--root", str(whole))
    assert_same(whole, "whole", whole, name, range(3))


@pytest.mark.parametrize("victim", ["sampler", pytest.param("flow", marks=pytest.mark.nightly)])
def test_what_is_sampled_outlives_the_sampler(
    forks: ForkServer, rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path, victim: str
) -> None:
    """It dies when it is to give the first shard the policy's hash. Or the run does, and samples it again."""
    arguments = ("run", str(tiny_recipe), "--name", f"named-{victim}", "--root", str(whole))
    done = forks.run("support.slow_save", "1", victim, *arguments, directory=tmp_path, timeout=900)
    assert PAID in done.stdout
    if victim == "flow":
        assert done.returncode == -signal.SIGKILL
        rondo("resume", f"named-{victim}", "--root", str(whole))
    else:
        assert done.returncode == 0, done.stderr
        assert "round 1  held-out sample" in done.stderr
        source = Store.open(whole).run(f"named-{victim}").entries(1, "handover")[-1].meta["source"]
        assert source == "memory", "no other engine had to be started for it"
    assert_same(whole, "whole", whole, f"named-{victim}", range(3))


@pytest.mark.nightly
def test_a_sampler_that_dies_over_the_comparison(rondo: Rondo, tiny_recipe: Path, whole: Path) -> None:
    """Another one reads the checkpoint, which comes in any case."""
    rondo("run", str(tiny_recipe), "--name", "compared", "--root", str(whole), kill="finish_weights:1:asked")
    assert_same(whole, "whole", whole, "compared", range(3))
