"""What a run says before it starts that it will take of this machine."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flows.analysis.capacity import plan_recipe
from flows.analysis.forecast import Forecast, forecast
from flows.registry.recipes import parse_recipe
from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from support.recipes import TINY

REPOSITORY = Path(__file__).parents[3]


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=size))


def test_a_whole_run_takes_what_the_planner_says_of_it() -> None:
    """The planner sums a run by itself; of a run that goes on after round 1 of 2, one round is left."""
    plan = plan_recipe(parse_recipe(TINY))
    begun = Forecast(plan, 2, begins=True)
    assert (begun.seconds, begun.disk) == (pytest.approx(plan.run_seconds), pytest.approx(plan.run_store))
    resumed = Forecast(plan, 1, begins=False)
    assert (resumed.seconds, resumed.disk) == (pytest.approx(plan.seconds), pytest.approx(sum(plan.store.values())))


def test_it_is_said_in_two_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, 50e9)
    lines = forecast(parse_recipe(TINY), -1, 2, tmp_path)
    assert len(lines) == 2
    assert "for 2 rounds of" in lines[0]
    assert "of 50 GB free;" in lines[1]
    (_, in_a_bucket) = forecast(parse_recipe(TINY), 0, 2, None)
    assert "50 GB" not in in_a_bucket


CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96,
    "num_hidden_layers": 2, "vocab_size": 300,
}  # fmt: skip
# Two matrices of 300 by 64, two layers of four matrices of 64 by 64 and three of 64 by 96; 4 bytes each.
CHECKPOINT = 4 * (2 * 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 96))


def pretrained(directory: Path, *changes: str) -> Recipe:
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return parse_recipe({**TINY, "policy": {"source": "pretrained", "path": str(directory)}}, changes)


def test_what_the_disk_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The weights of the first policy and of two rounds; what the tables may come to beside is warned of."""
    recipe = pretrained(tmp_path)
    free(monkeypatch, 3 * CHECKPOINT)
    assert "(may be too little)" in forecast(recipe, -1, 2, tmp_path)[1]
    free(monkeypatch, 3 * CHECKPOINT - 1)
    with pytest.raises(
        ConfigError, match=r"has .* free, and the weights of 2 rounds of this recipe take .*: make room"
    ):
        forecast(recipe, -1, 2, tmp_path)
    assert "(may be too little)" in forecast(recipe, -1, 2, tmp_path, made=True)[1], "the first is there already"
    # A run that goes on after round 1 of 3, whose round 2 was interrupted once its checkpoint was written.
    free(monkeypatch, CHECKPOINT)
    assert forecast(recipe, 1, 3, tmp_path, made=True)
    with pytest.raises(ConfigError, match="take"):
        forecast(recipe, 1, 3, tmp_path)


@pytest.mark.parametrize("change", ["update.lora={rank: 4, target_modules: [q_proj]}", "sampling.max_tokens=63"])
def test_what_is_counted_at_its_upper_bound_refuses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    """Tables, and an adapter that may be on fewer modules: the whole weights of the first policy are left."""
    recipe = pretrained(tmp_path, change)
    assert plan_recipe(recipe).store["tables"] > 0
    free(monkeypatch, CHECKPOINT * (1 if recipe.update.lora else 3))
    assert "(may be too little)" in forecast(recipe, -1, 2, tmp_path)[1]
    free(monkeypatch, 0)
    assert "(may be too little)" in forecast(parse_recipe(TINY), -1, 2, tmp_path)[1], "a warm start may be smaller"


class Card:
    """What torch says of a GPU, on a machine that has none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *, total: int = 80, used: int = 30) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
        properties = SimpleNamespace(total_memory=total * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
        monkeypatch.setattr(torch.cuda, "device_memory_used", lambda _device: used * 10**9)


def on_gpu() -> Recipe:
    return parse_recipe(TINY, ["devices.trainer=cuda"])


def test_of_a_gpu_what_is_free_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not taken from the data sheet; without the package that torch asks, as here, that is what is said."""
    asked = torch.cuda.device_memory_used
    Card(monkeypatch, "NVIDIA A100-SXM4-40GB", total=40, used=10)
    time, room = forecast(on_gpu(), -1, 2, tmp_path)
    assert time.startswith("on paper, as on 1 x a100: ")
    assert "of 30 GB free" in room
    monkeypatch.setattr(torch.cuda, "device_memory_used", asked)
    monkeypatch.setattr(torch.cuda, "_HAS_PYNVML", False)  # where another library brings the package
    said = "(how much is free is not known without the package nvidia-ml-py, which rondo[gpu] installs)"
    assert said in forecast(on_gpu(), -1, 2, tmp_path)[1]
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(asked_for.startswith("nvidia-ml-py") for asked_for in extras["gpu"])

    def no_such_device(_device: str) -> int:
        raise RuntimeError("a part of a GPU")

    monkeypatch.setattr(torch.cuda, "device_memory_used", no_such_device)
    assert "(how much is free is not known)" in forecast(on_gpu(), -1, 2, tmp_path)[1]


def test_nothing_is_guessed_of_a_card_that_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Card(monkeypatch, "NVIDIA GH200 480GB")
    free(monkeypatch, 50e9)
    speed, disk = forecast(on_gpu(), -1, 2, tmp_path)
    assert speed.startswith("what the run will take of 'NVIDIA GH200 480GB' cannot be said")
    assert re.fullmatch(r"disk at most about .* of 50 GB free", disk)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "of a GPU that is not here cannot be said" in forecast(on_gpu(), -1, 2, tmp_path)[0]


@pytest.mark.parametrize(
    ("policy", "said"),
    [({"path": "owner/unknown"}, "the size of 'owner/unknown' is not known here"), ({}, "cannot be counted")],
)
def test_what_nobody_can_say_is_said(tmp_path: Path, policy: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new"}))
    recipe = {**TINY, "policy": {"source": "pretrained", "path": str(tmp_path), **policy}}
    (line,) = forecast(parse_recipe(recipe), -1, 2, tmp_path)
    assert line.startswith("what the run will take cannot be said: ")
    assert said in line or not policy


def test_a_path_with_one_slash_is_asked_of_no_hub(tmp_path: Path) -> None:
    """The directory of a run that goes on may be gone; its checkpoint is in the store."""
    recipe = parse_recipe({**TINY, "policy": {"source": "warm_start", "corpus": "film_reviews"}})
    gone = PretrainedPolicy(source="pretrained", path="./gone")
    (line,) = forecast(recipe.model_copy(update={"policy": gone}), -1, 1, tmp_path)
    assert line.startswith("what the run will take cannot be said")
