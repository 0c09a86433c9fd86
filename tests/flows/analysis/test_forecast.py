"""What a run says before it starts that it will take of this machine."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.analysis.capacity import plan_recipe
from flows.analysis.forecast import Forecast, forecast
from flows.registry.recipes import parse_recipe
from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from support.recipes import TINY


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=size))


def test_a_whole_run_takes_what_the_planner_says_of_it() -> None:
    """The planner sums a run by itself; of a run that goes on after round 1 of 2, one round is left."""
    plan = plan_recipe(parse_recipe(TINY))
    begun = Forecast(plan, 2, begins=True)
    assert (begun.seconds, begun.disk) == (pytest.approx(plan.run_seconds), pytest.approx(plan.run_store))
    resumed = Forecast(plan, 1, begins=False)
    assert (resumed.seconds, resumed.disk) == (pytest.approx(plan.seconds), pytest.approx(sum(plan.store.values())))


def test_the_evaluation_as_served_is_sampled_and_judged_once_more() -> None:
    """And not scored: of two rounds and round 0, three times the held-out prompts are answered again."""
    plan = plan_recipe(parse_recipe(TINY, ["evaluation.serving={}"]))
    again = 3 * (plan.stages["evaluate"]["sample"] + plan.stages["evaluate"]["judge"])
    assert Forecast(plan, 2, begins=True).seconds == pytest.approx(plan.run_seconds + again)


def test_it_is_said_in_two_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, 50e9)
    lines = forecast(parse_recipe(TINY), -1, 2, tmp_path)
    assert len(lines) == 2
    assert "for 2 rounds of" in lines[0]
    assert "of 50 GB free;" in lines[1]
    (_, in_a_bucket) = forecast(parse_recipe(TINY), 0, 2, None)
    assert "50 GB" not in in_a_bucket


def test_what_the_disk_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Less than half of what is planned: even in half precision the weights would not fit."""
    recipe = parse_recipe(TINY)
    needed = plan_recipe(recipe).run_store
    free(monkeypatch, 0.51 * needed)
    assert "(too little)" in forecast(recipe, -1, 2, tmp_path)[1]
    free(monkeypatch, 0.49 * needed)
    with pytest.raises(ConfigError, match=r"has .* free, and 2 rounds of this recipe write about .*: make room"):
        forecast(recipe, -1, 2, tmp_path)


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
