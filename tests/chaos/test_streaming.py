"""Shards that stream: the same rows and weights as one after the other, whatever is killed, and a shard that kills."""

import itertools
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.log.run import Run
from storage.log.store import Store
from support import chaos
from support.compare import assert_same
from support.forkserver import Done
from support.recipes import TINY
from support.small_run import Rondo

# Six shards of two prompts; two steps of the update are known before the last shard is there.
STREAMED: dict[str, Any] = {
    **TINY,
    "name": "streamed",
    "policy": {**TINY["policy"], "steps": 10},
    "sampling": {**TINY["sampling"], "shard_prompts": 2, "most_set_aside": 0.2},
    "update": {**TINY["update"], "batch_size": 3, "epochs": 2, "batch_order": "shards", "checkpoint_steps": 1},
    "mode": "streaming",
}
KILLS = (
    "entry commit 1/candidates 1", "entry commit 1/preferences 0", "table 0001/preferences-00003.parquet",
    "entry commit 1/update_state 1", "entry commit 1/update_state 3", "entry commit 2/judgments 4",
    "entry commit 2/checkpoint", "entry commit 3/candidates 2",
)  # fmt: skip


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streamed") / "streamed.yaml"
    path.write_text(yaml.safe_dump(STREAMED))
    return path


def run(rondo: Rondo, recipe: Path, name: str, root: Path, *changes: str, **options: Any) -> Done:
    sets = [word for change in changes for word in ("--set", change)]
    return rondo("run", str(recipe), "--name", name, "--root", str(root), "--resume", *sets, **options)


@pytest.fixture(scope="module")
def root(rondo: Rondo, streamed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the runs ``phased``, and ``stale`` of staleness 1, that nothing interrupted."""
    root = tmp_path_factory.mktemp("root")
    run(rondo, streamed, "phased", root, "mode=phased")
    run(rondo, streamed, "stale", root, "staleness=1", "rounds=3")
    return root


def test_streaming_ends_with_the_weights_of_phases(rondo: Rondo, streamed: Path, root: Path) -> None:
    run(rondo, streamed, "streaming", root)
    assert_same(root, "phased", root, "streaming", range(3))
    asked = [Store.open(root).run(name).entries(2, "checkpoint")[-1].meta["busy"] for name in ("phased", "streaming")]
    assert len(asked[0]) == 3 < len(asked[1]), "the one update got all shards at once, the other those that were there"
    run(rondo, streamed, "narrow", root, "sampling.shards_in_flight=1")
    rows = [Store.open(root).run(name).files(2, "checkpoint") for name in ("streaming", "narrow")]
    assert [file.sha256 for file in rows[0]] == [file.sha256 for file in rows[1]]


@pytest.mark.parametrize(
    ("name", "changes", "rounds", "modes"),
    [
        ("phased", (), 2, ("streaming",)),
        pytest.param(
            "stale", ("staleness=1", "rounds=3"), 3, ("streaming", "streaming", "phased"), marks=pytest.mark.nightly
        ),
    ],
)
def test_killed_while_it_streams(
    rondo: Rondo, streamed: Path, root: Path, disk: Path,
    name: str, changes: tuple[str, ...], rounds: int, modes: tuple[str, ...],
) -> None:  # fmt: skip
    """One run, killed at one place after another, among them those where an update has saved its state.

    It may go on in the other mode, and ends the same.
    """
    covered, kills = disk / "covered", [kill for kill in KILLS if not kill.startswith("entry commit 3") or rounds == 3]
    settings = chaos.settings(covered, "after", only=kills)
    for mode in itertools.cycle(modes):
        mode_changes = (*changes, f"mode={mode}")
        done = run(rondo, streamed, name, disk / "root", *mode_changes, environment=settings, ok=False)
        if not done.returncode:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert set(covered.read_text().splitlines()) == set(kills)
    assert_same(root, name, disk / "root", name, range(rounds + 1))


@pytest.mark.parametrize("mode", ["streaming", pytest.param("phased", marks=pytest.mark.nightly)])
def test_what_is_done_is_not_done_again(rondo: Rondo, streamed: Path, tmp_path: Path, mode: str) -> None:
    """Killed right after the update: only the new policy's answers are missing. A stage without work is not shown."""
    settings = chaos.settings(tmp_path / "covered", "after", only=["entry commit 1/checkpoint"])
    changes = (f"mode={mode}", "rounds=1")
    killed = run(rondo, streamed, "r", tmp_path / "root", *changes, environment=settings, ok=False)
    assert killed.returncode == -signal.SIGKILL
    done = run(rondo, streamed, "r", tmp_path / "root", *changes)
    rest = ("sync weights", "held-out sample", "held-out judge", "score")
    assert _worked(done) == {f"round 1  {name}" for name in rest}


def test_staleness_samples_with_the_policy_before(root: Path) -> None:
    stale = Store.open(root).run("stale")
    policies = [stale.entries(number, "checkpoint")[-1].meta["policy"] for number in range(4)]
    for number, sampled_by in ((1, 0), (2, 0), (3, 1)):
        assert {entry.meta["policy"] for entry in stale.entries(number, "candidates")} == {policies[sampled_by]}
        assert stale.rounds()[number].meta["origin"]["sampled_by"] == policies[sampled_by]
        assert stale.entries(number, "checkpoint")[-1].meta["reference"] == policies[sampled_by]
        done = stale.entries(number, "checkpoint")[-1].meta
        assert done["span"] == [min(done["busy"])[0], max(end for _, end in done["busy"])]
        assert len(done["busy"]) > 3, "it waited for shards in between"
    first, second, third = (summary.meta for summary in stale.rounds()[1:])
    # Round 1's reference is the policy that it starts from; the others begin away from theirs.
    assert first["first_loss_expected"] == pytest.approx(0.693147, abs=1e-6)
    assert first["first_kl"] < 1e-8
    assert second["first_loss_expected"] is None
    assert min(second["first_kl"], third["first_kl"]) > 1e-3
    assert second["reference_logprobs"] == "sampler"
    assert first["seconds"]["ahead"] > 0
    assert third["seconds"]["ahead"] == 0


@pytest.mark.nightly
def test_a_stale_run_can_be_checked_forked_and_gone_on_with(rondo: Rondo, root: Path) -> None:
    """A fork begins a round whose shards nobody has sampled ahead, and samples ahead with another policy.

    Where its reference becomes an average that begins with the policy it starts from, that is not the one that sampled.
    """
    rondo("verify", "stale", "--root", str(root))
    rondo("fork", "stale@2", "--name", "grown", "--run", "--rounds", "4", "--root", str(root))
    assert_same(root, "stale", root, "grown", range(4))
    grown = Store.open(root).run("grown")
    spans = {
        number: [entry.meta["span"] for entry in grown.entries(number, "candidates") if entry.files]
        for number in (3, 4)
    }
    assert max(end for _, end in spans[3]) <= min(start for start, _ in spans[4])
    rondo("fork", "stale@2", "--name", "averaged", "--run", "--set", "update.reference=ema", "--root", str(root))
    averaged = Store.open(root).run("averaged")
    (begun,) = averaged.entries(3, "checkpoint")
    assert begun.meta["reference"] == averaged.rounds()[2].meta["policy"]
    assert begun.meta["reference_logprobs"] == "trainer"
    for name in ("grown", "averaged"):
        rondo("verify", name, "--root", str(root))


def test_a_shard_that_kills_the_engine_is_set_aside(rondo: Rondo, streamed: Path, root: Path, tmp_path: Path) -> None:
    """Two shards are in the engine when it dies; the other one is not blamed, and gives what it always gives."""
    done = run(rondo, streamed, "hurt", tmp_path, "rounds=1", environment={"RONDO_POISON": "candidates:1:1"})
    assert "2 prompts of shard 1 are skipped: the sampler process ended with status -9" in done.stderr
    hurt, whole = Store.open(tmp_path).run("hurt"), Store.open(root).run("phased")
    assert [_digest(hurt, shard) for shard in range(6)] == [
        None if shard == 1 else _digest(whole, shard) for shard in range(6)
    ]
    assert hurt.rounds()[1].meta["set_aside"] == 2
    assert "skipped: the engine died on 2 prompts" in hurt.rounds()[1].meta["alarms"][-1]
    assert rondo("verify", "hurt", "--root", str(tmp_path)).returncode == 0
    assert rondo("show", "hurt@1", "--root", str(tmp_path), "--table", "preferences").stdout


@pytest.mark.parametrize(
    ("poison", "changes", "words"),
    [
        ("candidates:1:2", ["sampling.most_set_aside=0.1"], "2 would be skipped, more than the 1.2"),
        ("eval_candidates:0:1", [], "died 3 times on held-out shard 1 of round 0"),
    ],
)
def test_what_may_not_be_set_aside_stops_the_run(
    rondo: Rondo, streamed: Path, tmp_path: Path, poison: str, changes: list[str], words: str
) -> None:
    done = run(rondo, streamed, "hurt", tmp_path, *changes, environment={"RONDO_POISON": poison}, ok=False)
    assert done.returncode == 1
    assert words in done.stderr


def _worked(done: Done) -> set[str]:
    """The stages that have ended, as they are shown."""
    return {line[:24].strip() for line in done.stderr.splitlines() if re.match(r"round \d+  ", line)}


def _digest(run: Run, shard: int) -> str | None:
    entries = run.entries(1, "candidates")
    (entry,) = (entry for entry in entries if entry.key is not None and entry.key.shard == shard)
    return entry.files[0].sha256 if entry.files else None
