"""From the tables of a round to what its update is given: places that are shared, and tables of earlier versions."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from flows.workers.preference_groups import off_policy, preference_groups, replayed_groups
from pipeline.config import PreferencesConfig
from pipeline.dpo.types import PreferenceGroup
from pipeline.preferences import build_preferences, choose_replayed, replayed_table
from pipeline.records import CANDIDATES, JUDGMENTS, PROMPTS, to_table

SCORES = (0.5, 1.0, 1.0, 0.0)


def tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    prompt = {
        "prompt_id": "p", "text": "a b", "messages": None, "token_ids": [4, 5], "source": "test",
        "reference_answer": None, "split": "train",
    }  # fmt: skip
    candidates: list[dict[str, Any]] = [
        {"prompt_id": "p", "candidate": k, "token_ids": [k + 6, 2], "text": f"w{k}", "logprobs": [-1.0, -k],
         "finish_reason": "stop", "seed": 0, "policy": "x"}
        for k in range(4)
    ]  # fmt: skip
    judgments = [
        {"prompt_id": "p", "candidate": k, "score": score, "score_std": None, "components": [], "rationale": None,
         "judge": "j", "judge_version": "1", "status": "ok", "latency": 0.0, "raw": None}
        for k, score in enumerate(SCORES)
    ]  # fmt: skip
    return to_table([prompt], PROMPTS), to_table(candidates, CANDIDATES), to_table(judgments, JUDGMENTS)


@pytest.mark.parametrize(("options", "places"), [({"ties": "keep"}, [0, 0, 1, 2]), ({}, [0, 1, 2])])
def test_places_reach_the_update_now_and_when_replayed(options: dict[str, Any], places: list[int]) -> None:
    prompts, candidates, judgments = tables()
    config = PreferencesConfig.model_validate({"rule": "full_ranking", "replay": {"share": 0.5}, **options})
    preferences = build_preferences(candidates, judgments, config, seed=0)
    (group,) = preference_groups(prompts, candidates, preferences)
    assert list(group.places) == places
    assert group.candidate_token_ids[0] == [7, 2]
    chosen = choose_replayed(preferences, {1: preferences}, config, seed=0)
    (again,) = replayed_groups(prompts, replayed_table(chosen, {1: candidates}))
    assert (group.origin_round, again) == (None, replace(group, origin_round=1))


def test_a_table_without_ranks_is_read() -> None:
    prompts, candidates, judgments = tables()
    preferences = build_preferences(candidates, judgments, PreferencesConfig(), seed=0).drop_columns(["ranks"])
    (group,) = preference_groups(prompts, candidates, preferences)
    assert list(group.places) == [0, 1]
    assert replayed_groups(prompts, None) == []


def test_how_far_off_policy_by_hand() -> None:
    """Three pairs, whose completions are likelier by 1 and 3, by 0 and 0, and by -1 and 0: means 2, 0 and -1/2.

    Their mean is 1/2, and their standard deviation sqrt((2.25 + 0.25 + 1) / 2) = sqrt(1.75).
    """
    changes = ((1.0, 3.0), (0.0, 0.0), (-1.0, 0.0))
    groups = [
        PreferenceGroup(
            prompt_id=f"p{n}", prompt_token_ids=[1], candidate_token_ids=[[2], [3]], reference_logps=[-2.0, -5.0]
        )
        for n in range(3)
    ]
    found = off_policy(groups, [[-2.0 + a, -5.0 + b] for a, b in changes])
    assert found == {"off_policy": pytest.approx(0.5), "off_policy_se": pytest.approx((1.75 / 3) ** 0.5)}
    assert off_policy(groups[:1], [[-2.0, -5.0]]) == {"off_policy": 0.0, "off_policy_se": None}
    assert off_policy([], []) == {}


def test_preferences_of_one_prompt_are_no_independent_evidence() -> None:
    """Of four preferences, whose values are 2, 1, 0 and -1, the first two are of one prompt; the mean is 1/2.

    Deviations are 1.5 + 0.5 = 2 of the first prompt, -0.5 and -1.5 of the others: sqrt(3/2 (4 + 1/4 + 9/4)) / 4. Were
    each independent, the error would be smaller, sqrt(5/3) / 2.
    """
    groups = [
        PreferenceGroup(
            prompt_id=name, prompt_token_ids=[1], candidate_token_ids=[[2], [3]], reference_logps=[-2.0, -5.0]
        )
        for name in ("a", "a", "b", "c")
    ]
    logps = [[-2.0 + value, -5.0 + value] for value in (2, 1, 0, -1)]
    error = (1.5 * 6.5) ** 0.5 / 4
    assert off_policy(groups, logps) == {"off_policy": pytest.approx(0.5), "off_policy_se": pytest.approx(error)}
    assert error > (5 / 3) ** 0.5 / 2
    assert off_policy(groups[:2], logps[:2])["off_policy_se"] is None
