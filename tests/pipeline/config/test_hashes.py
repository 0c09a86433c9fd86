"""Hashes that version 0.1.0 has left in stores, by which finished work is found again: each was computed with it."""

from typing import Any

import pytest

from pipeline.config import PreferencesConfig, PretrainedPolicy, SamplingConfig, UpdateConfig
from pipeline.dpo.state import DECIDED_ELSEWHERE, hashed_settings
from pipeline.dpo.types import RoundFacts
from pipeline.judges.base import judge_version
from pipeline.judges.human import HumanConfig
from pipeline.judges.json_schema import JsonSchemaConfig
from pipeline.judges.llm import LlmConfig
from pipeline.recipe import Recipe
from pipeline.records import content_id
from support.recipes import TINY

OTHER: dict[str, Any] = {
    "objective": {"sigmoid": 0.5, "simpo": 2, "dpop": 1}, "beta": 0.3, "label_smoothing": 0.1, "target_margin": 2,
    "dpop_penalty": 5, "schedule_over": "run", "schedule": "linear", "nll_weight": 0.1, "exploration_weight": 0.01,
    "warmup_steps": 3, "optimizer": "paged_adamw_8bit", "precision": "bfloat16", "stop_at_kl": 2, "lora": {"rank": 4},
    "optimizer_state": "carried", "reference": "initial", "checkpoint_steps": 3, "batch_order": "shards",
    "token_budget": 99, "learning_rate": 1e-4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "facts", "expected"),
    [
        (UpdateConfig(learning_rate=1e-4), RoundFacts(round=1, rounds=5), "1b4cc89e4ff643d2"),
        (UpdateConfig(**OTHER), RoundFacts(round=2, rounds=4, reference_is_start=False), "d3181bb40c2f6eee"),
    ],
)
def test_a_saved_update_is_still_known(config: UpdateConfig, facts: RoundFacts, expected: str) -> None:
    assert content_id(hashed_settings(config, facts)) == expected


def test_a_policys_precision_is_hashed_if_the_recipe_says_one() -> None:
    """0.1.0 hashed three fields."""
    given = {"source": "pretrained", "path": "owner/name", "revision": None}
    assert PretrainedPolicy(**given).hashed() == given
    assert PretrainedPolicy(**given, dtype="float32").hashed() == {**given, "dtype": "float32"}


def test_every_field_of_an_update_is_hashed_or_decided_elsewhere() -> None:
    """A new hyper-parameter is one of the first, without anybody's doing."""
    later = UpdateConfig(router_loss_weight=0.1, importance="clipped", importance_bound=3)  # else left out, as in 0.1.0
    hashed = hashed_settings(later, RoundFacts())
    names = {*hashed, *hashed["constants"], "objective"} - {
        "objectives", "constants", "schedule_start", "schedule_end", "reference_is_start"
    }  # fmt: skip
    assert names == set(UpdateConfig.model_fields) - DECIDED_ELSEWHERE


@pytest.mark.parametrize("kind", ["human", "people"])
def test_a_human_judge_is_hashed_by_its_old_kind(kind: Any) -> None:
    config = HumanConfig(kind=kind, pairs=2)
    assert content_id(config.hashed()) == "de00e56f38dd79be"
    assert judge_version(config) == "a88bee10bad9e888"
    assert config.model_dump(mode="json")["kind"] == kind


def test_a_judge_of_json_without_partial_credit_is_hashed_as_before() -> None:
    settings = {"kind": "json_schema", "definition": {"required": ["n"]}}
    plain, none, some = (
        JsonSchemaConfig.model_validate({**settings, **more})
        for more in ({}, {"partial_credit": 0}, {"partial_credit": 0.5})
    )
    assert plain.hashed() == none.hashed() == {**settings, "name": None, "fenced": False, "timeout_seconds": 1.0}
    assert some.hashed() == {**plain.hashed(), "partial_credit": 0.5}


def test_a_form_that_an_endpoint_may_take_is_hashed_as_none() -> None:
    settings = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "mode": "rubric"}
    auto, never, always = (LlmConfig.model_validate({**settings, "structured": value}) for value in (None, False, True))
    assert auto.hashed() == never.hashed() == {**always.hashed(), "structured": False}
    assert auto.model_dump(mode="json")["structured"] is None


@pytest.mark.parametrize("name", ["max_skipped_fraction", "most_set_aside"])
def test_sampling_is_hashed_by_its_old_names(name: str) -> None:
    config = SamplingConfig.model_validate({name: 0.2})
    assert config.hashed() == {
        "engine": "vllm", "prompts_per_round": 256, "candidates": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 48,
        "shard_prompts": 128, "shards_in_flight": 2, "most_set_aside": 0.2, "max_sequences": 256, "context": None,
        "handover_tolerance": 1e-3, "cache_gib": 1.0,
    }  # fmt: skip
    shown = config.model_dump(mode="json")
    assert shown["max_skipped_fraction"] == 0.2
    assert "most_set_aside" not in shown


def test_later_fields_leave_hashes_as_they_are_at_their_defaults() -> None:
    """Those of 0.1.0's finished preferences and updates; in a recipe as a whole, and where one is set it counts."""
    assert "router_loss_weight" not in UpdateConfig().hashed()
    assert not {"alarm_below", "on_none"} & PreferencesConfig().hashed().keys()
    assert PreferencesConfig(on_none="stop").hashed()["on_none"] == "stop"
    assert "alarm_truncated" not in SamplingConfig().hashed()
    whole = Recipe.model_validate(TINY)
    assert "serving" not in whole.hashed()["evaluation"]
    assert whole.hashed()["preferences"] == PreferencesConfig().hashed()
    assert {"alarm_below", "on_none"} <= whole.model_dump()["preferences"].keys()
