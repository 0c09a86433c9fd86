"""The form of a deployment: what Prefect's server refuses of it, by its own check of a schema."""

from pathlib import Path
from typing import Any

import pytest

import flows.prefect_api  # noqa: F401  before Prefect
from flows.registry.recipes import load_recipe, parse_recipe
from flows.registry.resume import FREE, free_changes, header
from flows.registry.shipped_files import shipped_recipes
from flows.schedule.form import as_changes, parameter_schema, recipe_fields
from flows.schedule.scheduled_rounds import wanted_recipe
from pipeline.errors import ConfigError
from storage.log.store import Store
from support.recipes import TINY

GIVEN: dict[str, Any] = {"run": "r", "rounds": 1, "recipe": "sentiment", "overrides": {}, "root": "/data/runs"}


def refused(*, exists: bool, **changed: Any) -> str:
    """What Prefect's server says of parameters when a flow run is asked for; nothing if it takes them."""
    from prefect.utilities.schema_tools.validation import ValidationError, validate

    try:
        validate({**GIVEN, **changed}, parameter_schema(GIVEN, exists=exists), raise_on_error=True)
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("exists", [False, True])
def test_the_form_fits_a_page(exists: bool) -> None:
    """At most fifteen fields, each of one type, for a form says nothing useful of a field that may be null."""
    fields = parameter_schema(GIVEN, exists=exists)["properties"]
    shown = {**fields, **fields["overrides"]["properties"]}
    assert len(shown) <= 15
    assert next(iter(fields)) == "run"
    for field in shown.values():
        assert isinstance(field["type"], str)
        assert field["description"]


@pytest.mark.parametrize("exists", [False, True])
def test_what_every_run_can_take(exists: bool) -> None:
    for taken in (
        {"mode": "streaming", "devices.trainer": "cuda:1"},
        {"devices.cpu_threads": 2, "cluster.sampler.replicas": 4},
        {"tracking.tensorboard": None, "notifications.blocks": ["slack-webhook/team"]},
        {"devices.judge": None},  # a field of the form that was left empty
    ):
        assert refused(exists=exists, overrides=taken) == ""
    assert refused(exists=exists, rounds=0)
    assert refused(exists=exists, run="other")
    assert refused(exists=exists, root="/elsewhere")
    assert "devices.samplr" in refused(exists=exists, overrides={"devices.samplr": "cpu"})
    assert "'gpu' does not match" in refused(exists=exists, overrides={"devices.sampler": "gpu"})
    assert "-3" in refused(exists=exists, overrides={"devices.cpu_threads": -3})


def test_what_only_a_new_run_can_take() -> None:
    for taken in ({"update.beta": 0.3}, {"judge.kind": "vader"}, {"update.lora": None}, {"evaluation.kl_limit": 5}):
        assert refused(exists=False, overrides=taken) == ""
        assert "does not match '^(devices|cluster|" in refused(exists=True, overrides=taken)
    for wrong in ({"update.beta": -1}, {"update.beta": "much"}, {"judge.kind": "nobody"}, {"update.epochs": 0}):
        assert refused(exists=False, overrides=wrong)


def test_every_field_of_the_shipped_recipes_can_be_given() -> None:
    """By the recipes' own values, which independent code has read: each of them is in its field's schema."""
    from flows.registry.recipes import flatten

    for path in shipped_recipes().values():
        values = flatten(load_recipe(path).model_dump(mode="json"))
        given = {key: value for key, value in values.items() if key in recipe_fields() and value != {}}
        assert len(given) > 60
        assert refused(exists=False, overrides=given) == ""


def test_the_recipe_of_a_flow_run(tmp_path: Path) -> None:
    store, recipe = Store.open(tmp_path), parse_recipe(TINY)
    store.create_run("r", header(recipe))
    assert wanted_recipe(store, "r", "any", {}) == recipe
    assert wanted_recipe(store, "r", "any", {"devices.cpu_threads": 3}).devices.cpu_threads == 3
    new = wanted_recipe(store, "new", "sentiment", {"update.beta": 0.25, "seed": None})
    assert new == load_recipe(Path("sentiment"), ["update.beta=0.25"])
    assert wanted_recipe(store, "new", recipe.model_dump(mode="json"), {}) == recipe, "a deployment of version 0.1.0"
    with pytest.raises(ConfigError, match=r"there is no run 'gone' .* 'mine' is no recipe that rondo brings along"):
        wanted_recipe(store, "gone", "mine", {})


def test_a_deployment_again_gives_what_differs_and_can(tmp_path: Path) -> None:
    run = Store.open(tmp_path).create_run("r", header(parse_recipe(TINY)))
    assert free_changes(run, parse_recipe(TINY)) == {}
    changed = parse_recipe(TINY, ["mode=streaming", "devices.cpu_threads=2"])
    assert free_changes(run, changed) == {"mode": "streaming", "devices.cpu_threads": 2}
    assert as_changes({"mode": None, "tracking.tensorboard": None}) == {"tracking.tensorboard": None}
    assert {key.split(".")[0] for key in recipe_fields()} >= set(FREE)
