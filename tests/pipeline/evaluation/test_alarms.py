"""What a round's metrics must look like for somebody to be told."""

import re

import pytest

from pipeline.config import PreferencesConfig, SamplingConfig
from pipeline.evaluation.held_out import alarms, initial_alarms
from pipeline.recipe import EvaluationConfig

INITIAL = {"length": 20.0, "entropy_per_token": 1.2}
GOOD = {"chosen_fell": 0.2, "chosen_change": 1.0, "length": 25.0, "kl_initial": 3.0, "entropy_per_token": 0.9}


def test_a_good_round_raises_none() -> None:
    assert alarms(GOOD, INITIAL, EvaluationConfig(kl_limit=5.0)) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"chosen_fell": 0.6, "chosen_change": -0.5, "chosen_measured": 128},
            "likelihood displacement: 60% of 128 chosen answers .* at least 53% .* .-0.50 nats",
        ),
        # All of 8: 8 / (8 + 1.645^2) = 75%. And 7 of 8, 59% by the same formula.
        ({"chosen_fell": 1.0, "chosen_change": -0.5, "chosen_measured": 8}, "likelihood displacement: .* at least 75%"),
        ({"chosen_fell": 0.875, "chosen_change": -0.5, "chosen_measured": 8}, "likelihood.* of 8 .* at least 59%"),
        ({"chosen_fell": 0.6, "chosen_change": -0.5}, "likelihood displacement: 60% of the .* likely .-0.50"),
        ({"length": 31.0}, "length: answers grew from 20.0 to 31.0 tokens"),
        ({"entropy_per_token": 0.59}, "entropy collapse: 0.59 nats per token, less than 50% of .* 1.20"),
        ({"kl_initial": 5.5}, "drift: KL .* 5.50 nats, above 5"),
    ],
)
def test_each_alarm_alone(changed: dict[str, float], expected: str) -> None:
    (found,) = alarms({**GOOD, **changed}, INITIAL, EvaluationConfig(kl_limit=5.0))
    assert re.match(expected, found)


@pytest.mark.parametrize(
    "changed",
    [
        {"chosen_fell": 0.6, "chosen_change": 0.1, "chosen_measured": 128},  # more fell than rose, by less
        {"chosen_fell": 0.75, "chosen_change": -0.5, "chosen_measured": 8},  # 6 of 8: at least 46% of all
        {"chosen_fell": 0.57, "chosen_change": -0.5, "chosen_measured": 128},  # at least 49.7%
        {"length": 30.0},
        {"entropy_per_token": 0.6},
    ],
)
def test_the_limits_themselves_are_quiet(changed: dict[str, float]) -> None:
    assert alarms({**GOOD, **changed}, INITIAL, EvaluationConfig()) == []


def test_few_preferences() -> None:
    """One of 24 prompts gave a preference: below the recipe's share, which is a tenth where it says nothing."""
    metrics = {**GOOD, "preference_share": 1 / 24, "dropped": {"agree": 20, "tie": 3}}
    (found,) = alarms(metrics, INITIAL, EvaluationConfig())
    assert found == (
        "few preferences: 4.2% of the prompts gave one, less than preferences.alarm_below 10% (20 agree, 3 tie)"
    )
    assert alarms(metrics, INITIAL, EvaluationConfig(), PreferencesConfig(alarm_below=1 / 24)) == []
    assert alarms({**metrics, "preference_share": 0.5}, INITIAL, EvaluationConfig(), PreferencesConfig(alarm_below=0.6))


def test_a_round_without_an_update_is_told_of_and_has_no_chosen_answers() -> None:
    """Whatever share the recipe names."""
    metrics = {**GOOD, "preference_share": 0.0, "no_update": "solved: all right"}
    del metrics["chosen_fell"], metrics["chosen_change"]
    for config in (PreferencesConfig(), PreferencesConfig(alarm_below=0)):
        (found,) = alarms(metrics, INITIAL, EvaluationConfig(), config)
        assert found == "no update, and the policy stays what it was: solved: all right"


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (
            {"truncated": 0.72, "sampled_truncated": 0.7},
            "70% of the sampled completions and 72% of the held-out",
        ),
        (
            {"truncated": 0.25, "sampled_truncated": 0.26},
            "26% of the sampled completions were .* 48, .* 25%: raise",
        ),
        ({"truncated": 0.25, "sampled_truncated": 0.25}, None),  # the limit itself is quiet
        ({"truncated": 0.0}, None),
    ],
)
def test_what_is_cut_is_told_of(shares: dict[str, float], said: str | None) -> None:
    config = SamplingConfig()
    (*found,) = alarms({**GOOD, **shares}, INITIAL, EvaluationConfig(), sampling=config)
    assert len(found) == (said is not None)
    assert said is None or re.match(f"truncation: {said}", found[0])
    assert alarms({**GOOD, **shares}, INITIAL, EvaluationConfig(), sampling=SamplingConfig(alarm_truncated=1)) == []


def test_the_initial_policy_has_alarms_of_its_own() -> None:
    found = initial_alarms(
        {"truncated": 0.5, "base_rate_alarm": "base rate 0: none", "unscored": ["j: 3 failed"]}, SamplingConfig()
    )
    assert [sentence.partition(":")[0] for sentence in found] == ["base rate 0", "truncation", "judge"]
    assert initial_alarms({"truncated": 0.1, "base_rate_alarm": None}, SamplingConfig()) == []
