"""Recipes: what ships parses, and what is wrong is said in one sentence with the field, the value and the remedy."""

from pathlib import Path
from typing import get_args

import pytest

from flows.recipes import differences, load_recipe, parse_recipe
from pipeline.config import RANKING_OBJECTIVES, Objective
from pipeline.errors import ConfigError
from support.recipes import TINY

SHIPPED = sorted((Path(__file__).parents[2] / "deploy" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_parse(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("update.bta=1", "update.bta: there is no such field (its value is 1): did you mean 'beta'?"),
        ("sampling.candidates=1", "sampling.candidates: 1 is not allowed: input should be greater than or equal to 2"),
        ("judge.kind=oracle", "judge.kind: 'oracle' does not exist: choose one of 'vader'"),
        ("policy.heads=3", "hidden_size 64 does not split into 3 heads"),
        ("update.beta=-1", "update.beta: -1 is not allowed: input should be greater than 0"),
        ("update.beta=.nan", "update.beta: nan is not allowed: input should be a finite number"),
        ("evaluation.judges=[{kind: vader, weight: 1}]", "evaluation.judges.0.weight: there is no such field"),
        ("prompts={source: jsonl, path: nowhere.jsonl}", "prompts.path: there is no file 'nowhere.jsonl'"),
        ("policy={source: pretrained, path: ./nowhere}", "policy.path: './nowhere' is no directory with a config.json"),
        ("judge={}", "judge.kind: this field is missing"),
        ("name=../escape", "name: '../escape' is not allowed"),
        ("sampling.max_tokens=96", "sampling.max_tokens 96 leaves no room for a prompt in policy.context 96"),
        ("update.objective=plackett_luce", "full_ranking goes with plackett_luce and all_pairs"),
        ("update", "--set 'update' has not the form dotted.key=value"),
        ("name.first=a", "'name' is a value and has no fields below it"),
        ("seed=[", "--set 'seed=[': the value is not YAML"),
    ],
)
def test_a_fault_is_one_sentence(change: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY, [change])
    assert sentence in str(caught.value)


def test_heads_that_kill_vllm_are_refused() -> None:
    """64 / 4 = 16, which vLLM's CPU attention does not take."""
    with pytest.raises(ConfigError, match="makes heads 16 wide"):
        parse_recipe(TINY, ["sampling.engine=vllm", "policy.heads=4"])


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY, ["sampling.candidates=1", "rounds=0"])
    assert "sampling.candidates" in str(caught.value)
    assert "rounds" in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "name: !!python/object/apply:os.getcwd []\n"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_recipe(path)


def test_changes_reach_the_tree_and_leave_the_source() -> None:
    recipe = parse_recipe(TINY, ["update.beta=0.25", "sampling.temperature=0.7"])
    assert (recipe.update.beta, recipe.sampling.temperature) == (0.25, 0.7)
    assert "temperature" not in TINY["sampling"]


def test_differences_name_fields_and_values() -> None:
    recipe, other = parse_recipe(TINY), parse_recipe(TINY, ["update.beta=0.25", "rounds=9"])
    assert differences(recipe, other) == ["update.beta: 0.1 -> 0.25"]


def test_a_recipe_offers_every_objective_that_there_is() -> None:
    from pipeline.losses import OBJECTIVES

    assert set(get_args(Objective)) == set(OBJECTIVES)
    assert set(RANKING_OBJECTIVES) == {name for name, objective in OBJECTIVES.items() if objective.rankings}
