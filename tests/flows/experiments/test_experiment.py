"""An experiment's file: the arms that it has, their recipes and runs, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.experiments.experiment import Plan, read_experiment
from flows.experiments.planned import cost, planned
from pipeline.errors import ConfigError
from support.recipes import TINY

SHIPPED = sorted((Path(__file__).parents[3] / "deploy" / "experiments").glob("*.yaml"))
TOY: dict[str, Any] = {
    "name": "toy", "question": "Which?", "expected": "This one.", "recipe": "tiny/recipe.yaml", "seeds": [3, 4],
    "score": "vader", "table_judge": "grammar", "set": {"rounds": 1},
    "arms": {
        "online": {"sweep": {"update.beta": [0.5, 0.25]}},
        "offline": {"label": "offline DPO", "set": {"update.epochs": 2}},
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "recipe.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


def plan_of(folder: Path, **fields: Any) -> Plan:
    content = TOY | fields
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_experiment(path)


def test_each_value_of_a_sweep_is_an_arm(folder: Path) -> None:
    plan = plan_of(folder)
    assert [one.name for one in plan.variants()] == ["online-0.5", "online-0.25", "offline"]
    assert [one.name for one in plan.variants(["online"])] == ["online-0.5", "online-0.25"]
    assert [one.name for one in plan.variants(["offline", "online-0.25"])] == ["online-0.25", "offline"]
    with pytest.raises(ConfigError, match="has no arm 'onlien': it has online, offline"):
        plan.variants(["onlien"])


def test_recipes_differ_by_arm_and_seed_alone(folder: Path) -> None:
    first, second, offline = plan_of(folder).variants()
    recipe = second.recipe(3, "runs")
    assert (recipe.seed, recipe.policy.seed, recipe.rounds, recipe.update.beta) == (3, 3, 1, 0.25)  # type: ignore[union-attr]
    assert recipe.model_copy(update={"update": first.recipe(3, "runs").update}) == first.recipe(3, "runs")
    assert (offline.recipe(4, "runs").update.epochs, offline.run(4)) == (2, "toy-offline-4")


def test_an_arm_can_be_that_of_another_experiment(folder: Path) -> None:
    plan_of(folder)
    other = plan_of(folder, name="other", set={"rounds": 1}, arms={"base": {"same_as": "toy/online-0.5"}})
    (base,) = other.variants()
    assert (base.name, base.run(3)) == ("base", "toy-online-0.5-3")
    assert base.recipe(3, "runs") == read_experiment(folder / "toy.yaml").variants()[0].recipe(3, "runs")


def test_runs_come_by_seed_with_their_costs(folder: Path) -> None:
    plan = plan_of(folder)
    runs = planned(plan, plan.variants(["offline"]), [3, 4], str(folder / "root"))
    assert [(run.name, run.done, run.samples, run.finished) for run in runs] == [
        ("toy-offline-3", -1, 48, False), ("toy-offline-4", -1, 48, False)
    ]  # fmt: skip
    assert cost(runs).startswith("2 of 2 runs to do, 96 completions to sample; on paper about ")


def test_what_arms_need_comes_first(folder: Path) -> None:
    sources = {"labels": {"set": {"sampling.prompts_per_round": 4}}}
    judge = {"kind": "reward_model", "path": "reward_model:bt"}
    arms = {
        "online": {}, "proxy": {"set": {"judge": judge, "evaluation.judges": [{"kind": "vader"}]}},
        "best": {"method": "best_of"},
    }  # fmt: skip
    plan = plan_of(folder, sources=sources, reward_models={"bt": {"source": "labels"}}, arms=arms)
    root = str(folder / "root")
    runs = planned(plan, plan.variants(["proxy"]), [3], root)
    assert [(run.name, run.compared) for run in runs] == [("toy-labels-3", False), ("toy-proxy-3", True)]
    assert runs[1].recipe.judge.path == str(folder / "root" / "reward_models" / "toy-bt-3")  # type: ignore[attr-defined]
    (_, anchor, best) = planned(plan, plan.variants(["best"]), [3], root)
    assert (anchor.name, anchor.compared, best.anchor) == ("toy-online-3", False, "toy-online-3")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": {"a": {}, "b": {"set": {"rounds": 2}}}}, "arm 'b' samples 96 completions and arm 'a' 48"),
        (
            {"arms": {"a": {}, "b": {"set": {"evaluation.prompts": 4}}}},
            "arm 'b' has 4 held-out prompts and arm 'a' 8: give all the same",
        ),
        ({"arms": {"a": {"method": "best_of"}}}, "no arm of method rondo"),
        ({"arms": {"a": {"set": {"update.betta": 1}}}}, "did you mean 'beta'"),
        ({"arms": {"a": {"options": {"samples": 2}}}}, "arms.a: options are for methods that are no run of rondo"),
        ({"arms": {"a": {"same_as": "toy/b", "set": {"rounds": 2}}}}, "same_as toy/b is that arm as it is"),
        ({"arms": {"a": {"set": {"judge.path": "reward_model:bt"}}}}, "has no reward model 'bt'"),
        ({"score": None}, "score: input should be a valid string"),
    ],
)
def test_refusals(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(plan := plan_of(folder, **fields), plan.variants(), [3], str(folder / "root"))


def test_an_experiment_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"there is no experiment 'fronteir': .* names candidates, frontier"):
        read_experiment(Path("fronteir"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_sound(path: Path, tmp_path: Path) -> None:
    """Each has recipes that are valid, at one budget, under its file's name, with the judges that it draws by."""
    plan = read_experiment(path)
    experiment = plan.experiment
    assert experiment.name == path.stem
    runs = planned(plan, plan.variants(), experiment.seeds, str(tmp_path))
    for run in (run for run in runs if run.compared):
        judges = run.recipe.judge_names
        assert {experiment.score, experiment.table_judge, *({experiment.against} - {"kl"})} <= set(judges)
        assert experiment.table_judge != judges[0], "training does not hear the judge of the table"
    assert set(experiment.table) <= {one.name for one in plan.variants()}
