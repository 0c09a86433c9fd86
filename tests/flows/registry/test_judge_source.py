"""The judge that a command names, in each of its forms, and what is said of one that is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.registry.judge_source import NamedJudge, with_judge
from pipeline.errors import ConfigError
from storage.log.run import Run
from storage.log.store import Store
from support.finished_run import finished_run, small_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = small_recipe(people={}, preferences={"min_margin": 0.25})
    return finished_run(Store.open(tmp_path_factory.mktemp("root")), rounds=1, recipe=recipe)


def judge_of(found: NamedJudge) -> dict[str, Any]:
    return found.recipe.judge.model_dump(mode="json", exclude_defaults=True)


def test_each_form(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def polite(**_): return 1.0\n")
    function = {"kind": "python", "function": "mine:polite", "name": "polite"}
    assert judge_of(with_judge(run, "mine:polite", [])) == function
    by_file = with_judge(run, f"{tmp_path}/mine.py:polite", [])
    assert (judge_of(by_file), by_file.directory) == (function, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert with_judge(run, "mine.py:polite", []).directory == tmp_path
    assert judge_of(with_judge(run, "length", ["judge.target=20"])) == {"kind": "length", "target": 20}
    assert judge_of(with_judge(run, None, [])) == {"kind": "vader"}
    recipe = tmp_path / "other.yaml"
    recipe.write_text(yaml.safe_dump({"name": "x", "judge": {"kind": "length", "limit": 9}, "rounds": "nonsense"}))
    assert judge_of(with_judge(run, str(recipe), ["judge.unit=characters"])) == {
        "kind": "length", "limit": 9, "unit": "characters",
    }  # fmt: skip
    noisy = tmp_path / "noisy.json"
    noisy.write_text(json.dumps({"kind": "noisy", "judge": {"kind": "vader"}, "seed": 3}))
    assert judge_of(with_judge(run, str(noisy), []))["kind"] == "noisy"
    assert judge_of(with_judge(run, "sentiment", [])) == {"kind": "vader"}, "a recipe that rondo brings along"


def test_the_rest_of_the_recipe_is_the_runs(run: Run) -> None:
    """Its seed, prompts and rule; no other judges, people or replay, on which nothing depends."""
    found = with_judge(run, "length", ["judge.limit=5"]).recipe
    own = small_recipe()
    assert (found.seed, found.prompts, found.sampling) == (own.seed, own.prompts, own.sampling)
    assert found.preferences.min_margin == 0.25
    assert found.people is None


@pytest.mark.parametrize("rule", ["all_pairs", "full_ranking"])
def test_any_rule_goes_whatever_the_objective_is(run: Run, rule: str) -> None:
    assert with_judge(run, None, [f"preferences.rule={rule}"]).recipe.preferences.rule == rule


def test_a_judge_that_compares_needs_no_other_beside_it(run: Run) -> None:
    fields = ["judge.model=m", "judge.base_url=http://127.0.0.1:9/v1", "judge.mode=pairwise"]
    assert with_judge(run, "llm", fields).recipe.judge.compares


@pytest.mark.parametrize(
    ("judge", "changes", "said"),
    [
        ("nobody", [], "'nobody' is no judge: give MODULE:FUNCTION, FILE.py:FUNCTION, a kind of judge, or a YAML file"),
        ("none.py:f", [], "there is no file 'none.py': correct the path"),
        ("my-judge.py:f", [], "'my-judge.py' is no name that Python can import: rename the file"),
        ("empty.yaml", [], "'empty.yaml' has no judge: begin it with 'kind: ...'"),
        ("length", [], "a judge of length takes either limit or target"),
        ("vader", ["preferences.soft_labels=true"], "need a judge that says how sure it is, and 'vader' does not"),
        ("vader", ["update.beta=1"], "only fields of judge and preferences matter to what is judged again"),
        ("vader", ["judge.limit=3"], r"judge.limit: there is no such field \(its value is 3\)"),
        ("human", [], "the judge 'human' needs people, or policies of the run, and cannot judge what is stored"),
        ("math", [], "the judge math compares with reference answers, and these prompts have none"),
    ],
)
def test_what_is_no_judge(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str, changes: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-judge.py").touch()
    (tmp_path / "empty.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=said):
        with_judge(run, judge, changes)


def test_a_module_that_python_would_find_elsewhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    for place in (tmp_path, tmp_path / "there"):
        (place / "mine.py").write_text("def polite(**_): return 1.0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Python would find 'mine' in .* and not in .*there: go there, or rename"):
        with_judge(run, "there/mine.py:polite", [])
