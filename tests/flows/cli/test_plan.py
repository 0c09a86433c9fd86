"""`rondo plan` as people call it: the sizes that it finds, what it says of mistakes, plans by measurement."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.analysis.calibration import measured_round
from flows.cli.main import app
from pipeline.errors import ConfigError
from pipeline.planning import KNOWN_SHAPES
from storage.log.manifest import Key
from storage.log.run import Writer
from storage.log.store import Store
from support.finished_run import finished_run, small_recipe

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
    found = asked(str(recipe))
    assert found["seconds"] > 0
    assert found["device"] == ("h100" if "gpu" in recipe.stem else "cpu")
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--gpu-hour-usd", "2"])
    assert shown.exit_code == 0, shown.output
    assert "Longest: " in shown.output
    assert "USD a run" in shown.output


def test_sizes_and_devices_come_from_the_command_line() -> None:
    gpu = str(RECIPES / "qwen2.5-0.5b-gpu.yaml")
    assert asked(gpu)["policy"]["parameters"] == KNOWN_SHAPES["qwen2.5-0.5b"].parameters
    large = asked(gpu, "--model", "llama-3-70b", "--gpus", "64", "--device", "h200", "--mode", "streaming")
    assert large["policy"]["parameters"] == KNOWN_SHAPES["llama-3-70b"].parameters
    assert sum(large["split"].values()) == 64
    assert large["device"] == "h200"
    numbers = asked(gpu, "--parameters", "7e9", "--layers", "32", "--hidden", "4096", "--set", "sampling.cache_gib=16")
    assert numbers["policy"]["parameters"] == 7_000_000_000
    assert numbers["memory"]["sampler"]["KV cache"] == 16 * 2**30
    given = asked(gpu, "--mode", "streaming", "--gpus", "8", "--split", "5:1:2")
    assert given["split"] == {"sampler": 5, "judge": 1, "trainer": 2}
    short = asked(gpu, "--answer-tokens", "100", "--prompt-tokens", "50", "--kept", "0.5")
    assert short["work"]["preferences"] == 512
    assert short["assumed"] == []


def test_a_local_policy_is_counted_by_its_configuration(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96,
        "num_hidden_layers": 2, "vocab_size": 300,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = str(RECIPES / "qwen2.5-0.5b-gpu.yaml")
    # Two matrices of 300 by 64, two layers of four matrices of 64 by 64 and three of 64 by 96, norms of 64.
    expected = 2 * 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64
    assert asked(recipe, "--set", f"policy.path={tmp_path}")["policy"]["parameters"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "policy.path=owner/unknown"], "policy.path: the size of 'owner/unknown' is not known here"),
        (["--set", "judge.path=owner/unknown"], "judge.path: the size of 'owner/unknown' is not known here"),
        (["--model", "gpt-9"], "--model 'gpt-9' is not known: choose among qwen2.5-0.5b"),
        (["--device", "b300"], "--device 'b300' is not known: choose among a100"),
        (["--parameters", "7e9"], "a size in numbers needs --layers and --hidden too"),
        (["--mode", "streaming", "--gpus", "8", "--split", "5:3"], "--split '5:3' is not SAMPLER:JUDGE:UPDATE"),
        (["--mode", "streaming", "--gpus", "2"], "streaming needs 3 devices or more"),
        (["--compare", "none@1", "--root", "nowhere"], "there is no root 'nowhere'"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_the_remedy(arguments: list[str], message: str) -> None:
    assert message in refused(str(RECIPES / "qwen2.5-0.5b-gpu.yaml"), *arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A root with a run of three rounds that say what they took, and its recipe.

    Each round sampled 1,000 tokens in 2 s, judged for 3 s, handed over in 0.1 s, and updated on 100 tokens in 5 s.
    """
    root = tmp_path_factory.mktemp("measured")
    store = Store.open(root)

    def also(writer: Writer, number: int) -> None:
        if number:
            writer.commit(Key(number, "candidates", 0, "counted"), [], {"candidates": 12, "tokens": 120})

    recipe = small_recipe(
        policy={"source": "pretrained", "path": "Qwen/Qwen2.5-0.5B"},
        prompts={"source": "datasets", "name": "owner/name"},
    )
    finished_run(
        store, recipe=recipe, also=also, seconds={"sample": 2.0, "judge": 3.0, "hand over": 0.1, "update": 5.0}
    )
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return str(root), str(path)


def test_a_calibrated_plan_gives_what_was_measured(measured: tuple[str, str]) -> None:
    root, recipe = measured
    plain = asked(recipe, "--root", root, "--compare", "small@3")
    found = asked(recipe, "--root", root, "--calibrate", "small@2", "--compare", "small@3")
    rows = {row["figure"]: row for row in found["comparison"]}
    # 12 candidates and 5 held-out answers of 10 tokens, at 500 tokens/s; 3 preferences as in round 2, of 100 tokens.
    assert found["work"]["answer_tokens"] == 10
    assert found["work"]["prompt_tokens"] == 2
    assert found["work"]["preferences"] == 3
    assert rows["sampling, s"]["on paper"] == pytest.approx(170 / 500)
    assert rows["optimizer steps, s"]["on paper"] == pytest.approx(5.0)
    assert rows["hand over, s"]["on paper"] == pytest.approx(0.1)
    assert rows["judging, s"]["on paper"] == pytest.approx(3.0)
    assert rows["sampling, s"]["measured"] == 2.0
    assert {row["figure"]: row for row in plain["comparison"]}["hand over, s"]["on paper"] > 1
    assert found["assumed"] == ["lengths, preferences and speed as measured in rounds 1 to 2 of run 'small'"]
    # Twice the prompts: twice the sampling, and twice the preferences at the same speed.
    twice = asked(
        recipe, "--root", root, "--calibrate", "small", "--compare", "small",
        "--set", "sampling.prompts_per_round=6", "--set", "evaluation.prompts=10", "--set", "update.batch_size=3",
    )  # fmt: skip
    assert twice["work"]["preferences"] == 6


def test_a_round_is_measured_in_bytes_and_seconds(measured: tuple[str, str]) -> None:
    run = Store.open(measured[0]).run("small")
    found = measured_round(run, 2)
    assert (found.sampled_tokens, found.sample_seconds, found.train_tokens, found.update_seconds) == (1000, 2, 100, 5)
    files = [file for entry in run.entries(2) for file in entry.files]
    assert found.table_bytes == sum(file.bytes for file in files)
    assert found.checkpoint_bytes == 0
    with pytest.raises(ConfigError, match="round 0 of run 'small' has no update to compare with"):
        measured_round(run, 0)
