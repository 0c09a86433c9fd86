"""Recipes by name, and the one that ``rondo init`` writes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.registry.recipes import load_recipe
from flows.registry.shipped_files import find_recipe, shipped_recipes
from pipeline.config import DatasetPrompts, FilePrompts, PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.judges.python_function import PythonConfig
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.recipe import ServingConfig


def test_every_recipe_that_ships_has_a_sentence() -> None:
    rows = json.loads(CliRunner().invoke(app, ["recipes", "--format", "json"]).stdout)
    assert [row["recipe"] for row in rows] == list(shipped_recipes())
    assert {"sentiment", "arithmetic"} <= set(shipped_recipes())
    assert all(row["description"].endswith(".") and Path(row["file"]).is_file() for row in rows)


def test_a_recipe_is_found_by_name_and_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("sentiment")).name == "sentiment"
    Path("sentiment").write_text("not this one")
    assert find_recipe(Path("sentiment")) == Path("sentiment")
    with pytest.raises(ConfigError, match=r"there is no recipe 'sentimental'.*arithmetic, .*sentiment"):
        load_recipe(Path("sentimental"))


def written(directory: Path, *arguments: str) -> Path:
    done = CliRunner().invoke(app, ["init", "my-run", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "rondo run my-run.yaml" in done.output
    return directory / "my-run.yaml"


def test_what_init_writes_is_a_recipe_with_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompts, model = tmp_path / "my prompts.jsonl", tmp_path / "model"
    model.mkdir()
    prompts.write_text('{"prompt": "Say please."}\n')
    (model / "config.json").write_text("{}")
    path = written(
        tmp_path, "--model", str(model), "--prompts", str(prompts), "--judge", "my.judges:polite", "--device", "cpu"
    )
    recipe = load_recipe(path)
    assert (recipe.name, recipe.devices.trainer) == ("my-run", "cpu")
    assert recipe.policy == PretrainedPolicy(source="pretrained", path=str(model))
    assert recipe.prompts == FilePrompts(source="jsonl", path=str(prompts))
    assert recipe.judge == PythonConfig(kind="python", function="my.judges:polite")
    text = path.read_text(encoding="utf-8")
    assert "For example in my/judges.py:" in text
    assert sum("# " in line for line in text.splitlines()) > 20, "whoever reads it is told what each part is"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_init_writes_fits_a_model_that_somebody_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The sizes hang together: eight shards, eight steps, and evaluations of at most half a round's answers."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        written(tmp_path, "--model", "o/m", "--prompts", "o/p", "--judge", "vader", "--device", device)
    )
    sampling, update, evaluation = recipe.sampling, recipe.update, recipe.evaluation
    assert sampling.prompts_per_round == 8 * sampling.shard_prompts
    assert sampling.prompts_per_round >= 8 * update.batch_size == 64
    assert 2 * evaluation.prompts <= sampling.prompts_per_round * sampling.candidates / 2
    assert update.lora is not None
    assert (update.learning_rate, update.stop_at_kl, update.warmup_steps > 0) == (2e-4, 5.0, True)
    assert evaluation.serving == ServingConfig(temperature=0.0)
    assert recipe.preferences.drop_truncated
    assert update.precision == ("float32" if device == "cpu" else "bfloat16")


def test_init_takes_a_dataset_a_reward_model_and_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(written(tmp_path, "--prompts", "owner/prompts", "--judge", "owner/rewards"))
    assert recipe.prompts == DatasetPrompts(source="datasets", name="owner/prompts")
    assert recipe.judge == RewardModelConfig(kind="reward_model", path="owner/rewards")
    for rule in ("vader", "math", "exact_answer"):
        Path("my-run.yaml").unlink()
        assert load_recipe(written(tmp_path, "--prompts", "owner/prompts", "--judge", rule)).judge.kind == rule


@pytest.mark.parametrize("named", ["judges.py:polite", "./judges.py:polite"])
def test_init_takes_a_function_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(written(tmp_path, "--prompts", "owner/prompts", "--judge", named))
    assert recipe.judge == PythonConfig(kind="python", function="judges:polite")


def test_a_directory_in_the_place_of_the_prompts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"prompts.path: 'x.jsonl' is a directory, and no file: correct the path"):
        load_recipe(written(tmp_path, "--prompts", "x.jsonl", "--judge", "vader"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["my run"], "'my run' cannot be made a recipe: name: 'my run' is not allowed"),
        (["../up"], "'../up' cannot be made a recipe"),
        (["new", "--judge", "good"], "--judge 'good' is no judge: give MODULE:FUNCTION"),
        (["new", "--judge", "sub/judges.py:score"], "go to that file's directory, and give its name alone"),
        (["new", "--device", "gpu"], "devices.sampler: 'gpu' is not allowed"),
        (["there"], "'there.yaml' is already there"),
    ],
)
def test_what_cannot_be_a_recipe_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("mine")
    done = CliRunner().invoke(app, ["init", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert sentence in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert Path("there.yaml").read_text() == "mine"
