"""`rondo plan` as people call it: what it prints, and what it says of mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from pipeline.errors import ConfigError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.log.writer import Writer
from support.finished_run import finished_run, small_recipe

DATASET = {"source": "datasets", "name": "owner/name"}
RECIPES = Path(__file__).parents[3] / "deploy" / "recipes"


def asked(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_can_be_planned(recipe: Path) -> None:
    found = asked(str(recipe), "--gpu-hour-usd", "2")
    metrics = {row["metric"]: row for row in found["metrics"]}
    assert metrics.keys() >= {"sample", "update", "round", "run", "memory, update", "store, run", "cost, run"}
    assert metrics["round"]["value"] > 0
    assert {row["basis"] for row in found["metrics"]} == {"assumed"}, "nothing was measured without --calibrate"
    assert all(source.startswith(("data sheet", "measured", "assumed")) for _, _, source in found["rests on"])
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--gpu-hour-usd", "2"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert ("x h100" if "gpu" in recipe.stem else "x cpu") in shown.output
    assert "update_share 0." in shown.output
    assert "USD" in shown.output


def test_a_metric_says_what_it_is_made_of_the_largest_first() -> None:
    found = asked(str(RECIPES / "qwen2.5-0.5b-gpu.yaml"), "--device", "h200", "--gpus", "2")
    metrics = {row["metric"]: row for row in found["metrics"]}
    # 494 million weights out of memory: 2 bytes each at 5 GB/s.
    assert metrics["sync weights"]["made of"] == "memory 0.198 s"
    assert metrics["store, round"]["made of"].startswith("checkpoint 1.98 GB, tables ")
    assert ["memory", 141e9, "data sheet: NVIDIA H200"] in found["rests on"]


def test_what_a_run_measured_is_marked(tmp_path: Path) -> None:
    recipe = small_recipe(policy={"source": "pretrained", "path": "Qwen/Qwen2.5-0.5B"}, prompts=DATASET)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))

    def also(writer: Writer, number: int) -> None:
        writer.commit(Key(number, "candidates", 0, "counted"), [], {"candidates": 12, "tokens": 120})
        writer.commit(Key(number, "checkpoint"), [], {"seconds": 5.0})

    # This run did not record how long its judge took.
    seconds = {"sample": 2.0, "hand over": 0.1, "update": 5.0}
    finished_run(Store.open(tmp_path / "runs"), recipe=recipe, also=also, seconds=seconds)
    found = asked(str(path), "--root", str(tmp_path / "runs"), "--calibrate", "small@3")
    bases = {row["metric"]: row["basis"] for row in found["metrics"]}
    assert {name for name, basis in bases.items() if basis == "measured"} == {"sample", "update", "sync weights"}
    assert {name for name, basis in bases.items() if basis == "partly measured"} == {"evaluate", "round", "run"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "policy.path=owner/unknown"], "the size of 'owner/unknown' is not known here"),
        (["--set", "judge.path=owner/unknown"], "--set judge.path to a directory with its config.json"),
        (["--device", "b300"], "--device 'b300' is not known: choose among a100"),
        (["--calibrate", "none@1", "--root", "nowhere"], "there is no root 'nowhere'"),
    ],
)
def test_mistakes_are_answered_with_the_remedy(arguments: list[str], message: str) -> None:
    assert message in refused(str(RECIPES / "qwen2.5-0.5b-gpu.yaml"), *arguments)
