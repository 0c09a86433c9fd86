"""A judge that is wrong on purpose: as often as it says, and whichever pair a rule picks."""

from statistics import fmean
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import PreferencesConfig
from pipeline.judges import JudgedCandidate, JudgeItem, Judgment, make_judge
from pipeline.judges.noisy import NoisyConfig
from pipeline.judges.support.tables import judgments_table
from pipeline.preferences import build_preferences
from pipeline.records import CANDIDATES, to_table

RATES = (0.02, 0.38)
PROMPTS = 1500
TEXTS = ("a great film", "a bad film", "a film", "a wonderful, great film", "a film that is bad")


def judged(items: list[JudgeItem], **settings: Any) -> list[Judgment]:
    config = {"kind": "noisy", "judge": {"kind": "vader"}, "error_rates": RATES, **settings}
    return make_judge(NoisyConfig.model_validate(config)).judge(items)


def item(prompt: int, texts: tuple[str, ...] = TEXTS) -> JudgeItem:
    answers = [JudgedCandidate(index=k, text=f"{text} {prompt}", finish_reason="stop") for k, text in enumerate(texts)]
    return JudgeItem(prompt_id=f"p{prompt}", prompt_text="", candidates=answers)


@pytest.fixture(scope="module")
def judgments() -> list[Judgment]:
    return judged([item(prompt) for prompt in range(PROMPTS)])


def candidates() -> pa.Table:
    return to_table([
        {"prompt_id": f"p{n}", "candidate": k, "token_ids": [k, 2], "text": "w", "logprobs": [-1.0, -1.0],
         "finish_reason": "stop", "seed": 0, "policy": "x"}
        for n in range(PROMPTS) for k in range(len(TEXTS))
    ], CANDIDATES)  # fmt: skip


@pytest.mark.parametrize("rule", ["best_vs_worst", "best_vs_random", "all_pairs"])
def test_its_soft_labels_are_how_often_the_order_is_right(judgments: list[Judgment], rule: str) -> None:
    true = {(one.prompt_id, one.candidate): one.components["true_score"] for one in judgments}
    config = PreferencesConfig.model_validate({"rule": rule, "soft_labels": True})
    rows = build_preferences(candidates(), judgments_table(judgments), config, seed=0).to_pylist()
    by_label: dict[float, dict[str, bool]] = {1 - rate: {} for rate in RATES}
    for row in rows:
        better, worse = ((row["prompt_id"], index) for index in row["candidates"])
        by_label[row["soft_label"]][row["prompt_id"]] = true[better] > true[worse]
    for label, right in by_label.items():
        # Prompts are independent: 5 standard errors of a share among about 750 of them.
        assert fmean(right.values()) == pytest.approx(label, abs=5 * (label * (1 - label) / len(right)) ** 0.5)
        assert len(right) > 0.45 * PROMPTS
    wrong = fmean(not right for found in by_label.values() for right in found.values())
    assert wrong == pytest.approx(0.2, abs=0.052)  # the same, among 1,500


def test_the_same_answers_are_judged_alike_in_any_shard(judgments: list[Judgment]) -> None:
    again = judged([item(prompt) for prompt in (7, 3)])
    by_prompt = {one.prompt_id: one for one in judgments if one.candidate == 0}
    for found in again[:: len(TEXTS)]:
        expected = by_prompt[found.prompt_id]
        assert (found.score, found.components) == (expected.score, expected.components)
    others = judged([item(prompt, TEXTS[::-1]) for prompt in range(200)])
    turned = [one.score != one.components["true_score"] for one in others[:: len(TEXTS)]]
    before = [by_prompt[f"p{n}"].score != by_prompt[f"p{n}"].components["true_score"] for n in range(200)]
    assert turned != before  # other answers draw anew


def test_scores_are_mirrored_at_the_centre_and_equal_ones_stay_equal() -> None:
    (one, *_), (two, *_) = judged([item(0)], error_rates=[0.0]), judged([item(0)], error_rates=[0.5], centre=0.25)
    assert one.score == one.components["true_score"]
    assert two.score in (one.score, 0.5 - (one.score or 0.0))
    first, second = judged([item(1, ("a film", "a film"))])
    assert first.score == second.score
    assert first.components["beats.1"] == second.components["beats.0"] == 0.5


def test_what_the_other_judge_gives_no_score_has_none() -> None:
    config = {"kind": "noisy", "judge": {"kind": "regex", "pattern": "(a+)+$", "timeout_seconds": 0.05}}
    texts = ("a" * 40 + "b", "a")
    slow = JudgeItem(
        prompt_id="p",
        prompt_text="",
        candidates=[JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(texts)],
    )
    found = make_judge(NoisyConfig.model_validate(config)).judge([slow])
    for one in found:
        assert (one.score is None) == (one.status != "ok")
        assert ("beats.1" in one.components) == (one.candidate == 0 and all(other.status == "ok" for other in found))
