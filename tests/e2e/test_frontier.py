"""`rondo frontier`: an experiment is run, killed, run again and drawn, with a tiny policy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.log.store import Store
from support.forkserver import Done
from support.recipes import TINY

Rondo = Callable[..., Done]
EXPERIMENT: dict[str, Any] = {
    "name": "toy", "question": "Which?", "expected": "This one.", "recipe": "tiny/recipe.yaml", "seeds": [7],
    "score": "vader", "table_judge": "praise", "at_kl": [0.001],
    "set": {"rounds": 1, "evaluation.judges": [{"kind": "praise"}]},
    "arms": {
        "online": {"label": "online DPO"},
        "supervised": {"set": {"update.objective": "supervised"}},
        "best-of": {"method": "best_of", "options": {"samples": 4}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "recipe.yaml").write_text(yaml.safe_dump(TINY))
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def done(rondo: Rondo, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an experiment that nothing interrupted."""
    root = tmp_path_factory.mktemp("frontier")
    ended = rondo("frontier", str(experiment), "--root", str(root))
    assert "3 of 3 runs to do" in ended.stderr
    assert "Win rate against each on held-out prompts, by praise" in ended.stdout
    return root


def figures(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "experiments" / "toy.json").read_text())
    return found


def test_each_arm_is_a_run_and_what_they_share_is_made_once(done: Path) -> None:
    store = Store.open(done)
    assert store.run_names() == ["toy-online-7", "toy-supervised-7"]
    online, supervised = (store.run(name) for name in store.run_names())
    assert online.annexes == ["toy-best-of-7"]
    first = [run.rounds()[0].meta["policy"] for run in (online, supervised)]
    assert first[0] == first[1]
    assert online.files(0, "checkpoint") == supervised.files(0, "checkpoint"), "the warm start is shared"
    sampled = [[file.sha256 for file in run.files(1, "candidates")] for run in (online, supervised)]
    assert len(sampled[0]) == len(sampled[1]) == 2
    assert online.rounds()[1].meta["policy"] != supervised.rounds()[1].meta["policy"]


def test_what_is_drawn_is_what_the_rounds_say(rondo: Rondo, done: Path) -> None:
    """Means of one seed are those of its rounds; the best of 1 is the initial policy, and more samples score more."""
    means = {(mean["name"], mean["number"]): mean for mean in figures(done)["means"]}
    for name in ("online", "supervised"):
        for entry in Store.open(done).run(f"toy-{name}-7").rounds():
            mean = means[name, entry.meta["round"]]
            assert mean["y"]["mean"] == pytest.approx(entry.meta["reward"])
            assert mean["kl"]["mean"] == pytest.approx(entry.meta["kl_initial"] or 0.0, abs=1e-9)
            assert mean["judges"]["praise"] == pytest.approx(entry.meta["judges"]["praise"])
    one, two = means["best-of", 1], means["best-of", 2]
    assert one["kl"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert 0 < two["kl"]["mean"] <= two["bound"]
    assert two["y"]["mean"] > one["y"]["mean"]
    rates = {(win["name"], win["against"]): win["rate"]["mean"] for win in figures(done)["wins"]}
    assert rates["online", "supervised"] + rates["supervised", "online"] == pytest.approx(1.0)
    picture = (done / "experiments" / "toy.svg").read_text()
    assert picture.startswith("<svg")
    assert "online ends at" in picture
    assert rondo("verify", "toy-online-7", "--root", str(done)).returncode == 0


def test_killed_and_given_again_it_is_the_same(rondo: Rondo, experiment: Path, done: Path, tmp_path: Path) -> None:
    """In the middle of a run, and between two steps of what is measured beside it: the same figures, to the bit."""
    command = ("frontier", str(experiment), "--root", str(tmp_path))
    assert rondo(*command, kill="checkpoint:1:before").returncode == -9
    assert rondo(*command, kill="beside_judgments:0:before").returncode == -9
    assert not (tmp_path / "experiments").exists()
    rondo(*command)
    assert figures(tmp_path) == figures(done)
    for ending in ("csv", "svg"):
        mine, theirs = ((root / "experiments" / f"toy.{ending}").read_bytes() for root in (tmp_path, done))
        assert mine == theirs


def test_given_again_nothing_is_run(rondo: Rondo, experiment: Path, done: Path) -> None:
    before = {name: Store.open(done).run(name).head for name in Store.open(done).run_names()}
    said = rondo("frontier", str(experiment), "--root", str(done), "--format", "json")
    assert json.loads(said.stdout)["wins"] == figures(done)["wins"]
    assert "all 3 runs are there" in said.stderr
    assert {name: Store.open(done).run(name).head for name in before} == before
    listed = json.loads(rondo("frontier", str(experiment), "--root", str(done), "--dry-run", "--json").stdout)
    assert [(row["run"], row["rounds"]) for row in listed] == [
        ("toy-online-7", "1/1"), ("toy-supervised-7", "1/1"), ("toy-best-of-7", "1/1")
    ]  # fmt: skip


def test_what_is_wrong_is_said(rondo: Rondo, experiment: Path, done: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        ended = rondo("frontier", *arguments, check=False)
        assert ended.returncode == 1
        return ended.stderr.replace("\n", " ")

    assert "--seeds 'one' is no list of whole numbers" in refused(str(experiment), "--seeds", "one")
    assert "no run of experiment 'toy' is finished" in refused(
        str(experiment), "--root", str(tmp_path), "--draw-only", "--arms", "online"
    )
    other = experiment.with_name("other.yaml")
    arms = {**EXPERIMENT["arms"], "best-of": {"method": "best_of", "options": {"samples": 8}}}
    other.write_text(yaml.safe_dump(EXPERIMENT | {"arms": arms}, sort_keys=False))
    assert "'toy-best-of-7' beside run 'toy-online-7' was made with other settings" in refused(
        str(other), "--root", str(done)
    )
    arms["online"] = {"set": {"update.beta": 0.2}}
    other.write_text(yaml.safe_dump(EXPERIMENT | {"arms": arms}, sort_keys=False))
    assert "run 'toy-online-7' was started with another recipe (update.beta: 0.1 -> 0.2)" in refused(
        str(other), "--root", str(done)
    )
    arms["online"], arms["best-of"] = {}, {"method": "best_of", "options": {"sample": 8}}
    other.write_text(yaml.safe_dump(EXPERIMENT | {"arms": arms}, sort_keys=False))
    assert "option sample: Extra inputs are not permitted; best_of takes samples" in refused(
        str(other), "--root", str(done)
    )


@pytest.mark.nightly
def test_a_reward_model_is_fitted_once_for_a_seed(rondo: Rondo, experiment: Path, tmp_path: Path) -> None:
    """Killed after its source was sampled, and in the run that has it as its judge: one model, and one source."""
    path = experiment.with_name("models.yaml")
    judge = {"kind": "reward_model", "name": "proxy", "path": "reward_model:bt"}
    judges = [{"kind": "vader"}, {"kind": "praise"}]
    fields = {
        "name": "models", "set": {"rounds": 1},
        "sources": {"labels": {"set": {"preferences.rule": "all_pairs"}}},
        "reward_models": {"bt": {"source": "labels", "settings": {"learning_rate": 1e-3}}},
        "arms": {"proxy": {"set": {"judge": judge, "evaluation.judges": judges}}},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(EXPERIMENT | fields, sort_keys=False))
    command = ("frontier", str(path), "--root", str(tmp_path))
    assert rondo(*command, kill="checkpoint:1:before").returncode == -9
    assert not (tmp_path / "reward_models").exists()
    rondo(*command)
    (model,) = (tmp_path / "reward_models").iterdir()
    assert model.name == "models-bt-7"
    store = Store.open(tmp_path)
    assert store.run_names() == ["models-labels-7", "models-proxy-7"]
    assert store.run("models-proxy-7").header["recipe"]["judge"]["path"] == str(model)
    found = json.loads((tmp_path / "experiments" / "models.json").read_text())
    assert {mean["name"] for mean in found["means"]} == {"proxy"}
    assert set(found["means"][0]["judges"]) == {"proxy", "vader", "praise"}
    fields["reward_models"] = {"bt": {"source": "labels", "settings": {"learning_rate": 2e-3}}}
    path.write_text(yaml.safe_dump(EXPERIMENT | fields, sort_keys=False))
    refused = rondo(*command, check=False)
    assert refused.returncode == 1
    assert "was fitted to other rounds, or with other settings" in " ".join((refused.stdout + refused.stderr).split())


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_the_ppo_family_by_trl(started_rondo: Rondo, experiment: Path, done: Path, method: str) -> None:
    """Four policies are measured, the last of which is another than the first, on the run's own prompts."""
    path = experiment.with_name(f"{method}.yaml")
    options = {"learning_rate": 1e-3, "prompts_per_step": 3}
    arms = {"online": {}, "peer": {"method": method, "options": options}}
    path.write_text(yaml.safe_dump(EXPERIMENT | {"name": method, "arms": arms}, sort_keys=False))
    started_rondo("frontier", str(path), "--root", str(done))
    found = json.loads((done / "experiments" / f"{method}.json").read_text())
    means = [mean for mean in found["means"] if mean["name"] == "peer"]
    assert [mean["number"] for mean in means] == [0, 1, 2, 3, 4]
    assert means[1]["kl"]["mean"] != means[-1]["kl"]["mean"]
    assert all(mean["kl"]["prompts"] == 8 for mean in means)
