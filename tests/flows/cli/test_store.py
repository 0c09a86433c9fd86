"""The commands that look after the store, as a user meets them."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.analysis.pruning import parse_grace, rounds_to_keep, rounds_with_weights
from flows.cli.main import app
from flows.errors import WaitingForLabelsError
from flows.registry.round_summary import RoundSummary
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.errors import RunHasForksError
from storage.log.manifest import Key
from storage.log.store import Store
from support.kept_run import kept_fork, kept_run, weights
from support.recipes import TINY

Rondo = Callable[..., Result]
REWARDS = (0.1, 0.5, 0.9, 0.3, 0.2)
KL = (None, 0.4, 0.8, 0.2, 0.6)


def summary(round: int, **changes: Any) -> RoundSummary:
    """A round with the metrics that pruning looks at."""
    fields = {
        "round": round, "policy": f"policy{round}", "judge": "vader", "reward": 0.0, "reward_se": None, "judges": {},
        "length": 9.0, "truncated": 0.0, "distinct": 0.5, "entropy_per_token": 1.0, "handover_drift": 0.0,
        "sampled_tokens": 10, "seconds": {"sample": 1.0},
    }  # fmt: skip
    return RoundSummary.model_validate(fields | changes)


def metrics(round: int) -> dict[str, Any]:
    """What the entry of a round says."""
    found = summary(round, reward=REWARDS[round], kl_initial=KL[round]).model_dump(mode="json")
    del found["policy"]
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of rounds 0 to 4, with tables, weights and metrics."""
    root = tmp_path_factory.mktemp("template") / "root"
    kept_run(Store.open(root), "kept", 4, metrics, recipe=Recipe.model_validate(TINY).model_dump(mode="json"))
    return root


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(template, tmp_path / "root"))


@pytest.fixture
def rondo(store: Store, monkeypatch: pytest.MonkeyPatch) -> Rondo:
    monkeypatch.setenv("RONDO_ROOT", store.root)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments, **more: CliRunner().invoke(app, arguments, **more)


def test_verify_says_what_is_damaged_and_where_to_go_on(rondo: Rondo, store: Store) -> None:
    whole = rondo("verify", "kept")
    assert (whole.exit_code, whole.exception) == (0, None)
    assert whole.stdout.startswith("run 'kept' is as it was committed: ")
    path = store.run("kept").files(4, "checkpoint")[0].path
    Path(store.root, path).write_bytes(b"{}")
    told = rondo("verify", "kept")
    assert told.exit_code == 1
    assert "nothing can go on from this round; other rounds are not concerned" in " ".join(told.stdout.split())
    assert "good rounds: 0, 1, 2, 3" in told.stdout
    assert "newest good checkpoint: rondo fork kept@3 --name NEW" in told.stdout
    found = json.loads(rondo("verify", "kept", "--json").stdout)
    assert (found["ok"], found["good"], found["newest_checkpoint"]) == (False, [0, 1, 2, 3], 3)
    assert [damage["path"] for damage in found["damages"]] == [path]


def test_prune_by_figures(rondo: Rondo, store: Store) -> None:
    arguments = ("prune", "kept", "--keep-best", "reward", "--keep-best", "kl_initial:min", "--json")
    planned = json.loads(rondo(*arguments, "--dry-run").stdout)
    assert rounds_with_weights(store.run("kept")) == [0, 1, 2, 3, 4]
    done = json.loads(rondo(*arguments).stdout)
    assert (planned["removed"], done["removed"]) == (False, True)
    assert planned["removals"] == done["removals"]
    assert {item["round"] for item in done["removals"]} == {1}
    assert rounds_with_weights(store.run("kept")) == [0, 2, 3, 4], (
        "round 2 has the highest reward, round 3 the least KL"
    )
    people = rondo("prune", "kept", "--keep-last", "1").stdout
    assert "the tables of all rounds stay" in people
    assert rounds_with_weights(store.run("kept")) == [0, 4]
    assert rondo("verify", "kept").exit_code == 0


def test_prune_keeps_the_policies_that_judge(rondo: Rondo, store: Store) -> None:
    judge = {"kind": "implicit", "policy": 3, "reference": 1}
    recipe = Recipe.model_validate({**TINY, "judge": judge}).model_dump(mode="json")
    run = kept_run(store, "judged", 4, metrics, recipe=recipe)
    assert rondo("prune", "judged", "--keep-last", "1").exit_code == 0
    run.refresh()
    assert rounds_with_weights(run) == [0, 1, 3, 4]


def test_prune_names_the_forks_that_keep_weights(rondo: Rondo, store: Store) -> None:
    kept_fork(store, store.run("kept"), 2, "fork", 2)
    told = rondo("prune", "kept", "--keep-last", "1").stdout
    assert "kept, because forks (fork) name them: the weights of rounds 1, 2" in told
    assert rounds_with_weights(store.run("kept")) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["prune", "kept"], "say what to keep"),
        (["prune", "kept", "--keep-best", "fun"], "the rounds have no such metric, but reward, kl_initial"),
        (["prune", "kept", "--keep-best", "reward:low"], "or METRIC:min if less is better"),
        (["sweep", "--grace", "soon"], "'soon' is no duration"),
        (["verify", "kpt"], "did you mean 'kept'?"),
        (["lineage", "kpt"], "did you mean 'kept'?"),
        (["delete", "kpt", "--yes"], "did you mean 'kept'?"),
        (["delete", "kpt"], "did you mean 'kept'?"),
        (["delete", "kept@3"], "'kept@3' is no run name"),
        (["fork", "kept@2", "--name", "new"], "the weights of round 2 of run 'kept' were pruned"),
    ],
)
def test_a_users_mistake_is_one_sentence(rondo: Rondo, arguments: list[str], sentence: str) -> None:
    if arguments[0] == "fork":
        assert rondo("prune", "kept", "--keep-last", "1").exit_code == 0
    told = rondo(*arguments)
    assert told.exception is not None
    assert sentence in str(told.exception)
    assert "\n" not in str(told.exception)


def test_sweep(rondo: Rondo, store: Store) -> None:
    weights(store, store.run("kept"), 5, "checkpoint")
    assert rondo("sweep").stdout.strip() == "nothing to sweep"
    planned = json.loads(rondo("sweep", "--grace", "0s", "--dry-run", "--json").stdout)
    assert [stray["why"] for stray in planned] == ["unnamed"] * 3
    assert "3 files" in rondo("sweep", "--grace", "0s").stdout
    assert rondo("sweep", "--grace", "0s").stdout.strip() == "nothing to sweep"


def test_delete_asks_and_refuses(rondo: Rondo, store: Store) -> None:
    kept_fork(store, store.run("kept"), 2, "fork", 2)
    assert rondo("delete", "fork", input="n\n").exit_code == 1
    assert store.run_names() == ["fork", "kept"]
    assert isinstance(rondo("delete", "kept", "--yes").exception, RunHasForksError)
    assert rondo("delete", "fork", input="y\n").exit_code == 0
    assert rondo("delete", "kept", "--yes").exit_code == 0
    assert store.run_names() == []


def test_lineage(rondo: Rondo, store: Store) -> None:
    parent = store.run("kept")
    first = kept_fork(store, parent, 2, "first", 3)
    kept_fork(store, first, 1, "second", 2)
    alone = kept_run(store, "alone", 0)
    with pytest.raises(WaitingForLabelsError), alone.writer() as writer:  # noqa: PT012
        writer.commit(Key(1, "asked"), [])
        raise WaitingForLabelsError("waiting")
    assert rondo("prune", "kept", "--keep-last", "1").exit_code == 0
    lines = [line.strip("│└├─ ") for line in rondo("lineage").stdout.splitlines()]
    shape = "alone round kept round round round first round second round round round round"
    assert [line.split()[0] for line in lines[1:]] == shape.split()
    assert "first  kept  rounds 0 to 3  stopped  fork of kept@2" in lines
    assert "kept  tiny  rounds 0 to 4  finished" in lines
    assert (lines[1].split()[0], lines[1].split("  ")[-1]) == ("alone", "waiting for people")
    family = json.loads(rondo("lineage", "second", "--json").stdout)
    assert [run["run"] for run in family] == ["kept", "first", "second"]
    assert family[0]["forks"] == ["first"]
    assert [round["weights"] for round in family[0]["rounds"]] == ["there", "there", "there", "removed", "there"]
    assert [release["reason"] for release in family[0]["releases"]] == ["pruned"]
    assert [round["inherited"] for round in family[2]["rounds"]] == [True, True, False]
    assert family[0]["rounds"][1]["record"]["policy"] == parent.entries(1, "checkpoint")[-1].meta["policy"]
    assert family[0]["rounds"][1]["session"]["pid"] > 0


def test_a_damaged_run_does_not_hide_the_others(rondo: Rondo, store: Store) -> None:
    kept_run(store, "torn", 0)
    Path(store.root, "runs/torn/log/0000000000.json").write_bytes(b"{}")
    assert [(row["run"], row["state"]) for row in json.loads(rondo("runs", "--json").stdout)] == [
        ("kept", "finished"), ("torn", "damaged"),
    ]  # fmt: skip


def test_what_reads_tables_reads_them_after_pruning(rondo: Rondo, store: Store) -> None:
    assert rondo("prune", "kept", "--keep-last", "1").exit_code == 0
    assert len(json.loads(rondo("rounds", "kept", "--json").stdout)) == 5
    assert json.loads(rondo("runs", "--json").stdout)[0]["rounds"] == "4/4", "more than its recipe has"
    forked = rondo("fork", "kept@4", "--name", "new")
    assert forked.exit_code == 0
    assert "run 'new' begins with kept@4; this runs its rounds: rondo resume new --rounds 5\n" in forked.output
    assert store.run("new").last_round.meta["round"] == 4, "it is made, and its rounds are not run"
    assert rounds_with_weights(store.run("new")) == [0, 4]
    assert rondo("verify", "new").exit_code == 0


rewards = st.lists(st.floats(-1, 1) | st.none(), min_size=1, max_size=12)


@settings(deadline=None)
@given(rewards, st.integers(1, 5), st.integers(1, 5))
def test_the_rule_for_what_is_kept(values: list[float | None], last: int, every: int) -> None:
    rounds = [summary(number, kl_initial=value) for number, value in enumerate(values)]
    kept = rounds_to_keep(rounds, last, every, [])
    assert kept == {n for n in range(len(values)) if n >= len(values) - last or n % every == 0}
    known = [value for value in values if value is not None]
    if known:
        (lowest,), (highest,) = (rounds_to_keep(rounds, None, None, [f"kl_initial{how}"]) for how in (":min", ""))
        assert (values[lowest], values[highest]) == (min(known), max(known))
    else:
        with pytest.raises(ConfigError, match="no such metric"):
            rounds_to_keep(rounds, None, None, ["kl_initial"])


def test_durations() -> None:
    assert [parse_grace(text) for text in ("90m", "24h", "7d", "0s")] == [
        timedelta(minutes=90), timedelta(hours=24), timedelta(days=7), timedelta(0),
    ]  # fmt: skip
