"""The metrics of an evaluation, against numbers derived by hand and against exact values of known distributions."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.evaluation.metrics import (
    answer_statistics,
    kl_estimate,
    least_share,
    mean_score,
    most_changed,
    scored_answers,
    scores_by_prompt,
    thought_statistics,
    win_rate,
)
from pipeline.records import CANDIDATES, JUDGMENTS, THINKING_CANDIDATES, to_table


def judgment(prompt_id: str, score: float | None, **changes: Any) -> dict[str, Any]:
    row = {
        "prompt_id": prompt_id, "candidate": 0, "score": score, "score_std": None, "components": [], "rationale": None,
        "judge": "vader", "judge_version": "1", "status": "ok", "latency": 0.0, "raw": None,
    }  # fmt: skip
    return row | changes


def candidate(prompt_id: str, token_ids: list[int], text: str, finish_reason: str = "stop") -> dict[str, Any]:
    return {
        "prompt_id": prompt_id, "candidate": 0, "token_ids": token_ids, "text": text,
        "logprobs": [-0.5] * len(token_ids), "finish_reason": finish_reason, "seed": 0, "policy": "x",
    }  # fmt: skip


def test_scores_by_prompt_take_what_the_judge_could_give() -> None:
    rows = [
        judgment("a", 0.5), judgment("a", 1.0, candidate=1), judgment("b", None, status="too_long"),
        judgment("c", math.nan), judgment("d", 0.25), judgment("d", 9.0, candidate=1, status="timed_out"),
    ]  # fmt: skip
    assert scores_by_prompt(to_table(rows, JUDGMENTS)) == {"a": 0.75, "b": None, "c": None, "d": 0.25}
    with pytest.raises(DataError, match="2 judges, grammar, vader: give those of one"):
        scores_by_prompt(to_table([*rows, judgment("a", 1.0, judge="grammar")], JUDGMENTS))


def test_mean_score_and_its_standard_error() -> None:
    estimate = mean_score({"a": 1.0, "b": 2.0, "c": 3.0, "d": 6.0, "e": None})
    # Deviations -2, -1, 0, 3 from the mean 3: variance 14 / 3, and the error is its root over 2.
    assert (estimate.mean, estimate.count) == (3.0, 4)
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert math.isnan(mean_score({"a": 1.0}).standard_error)
    with pytest.raises(DataError, match="no prompt has a score"):
        mean_score({"a": None})


@pytest.mark.parametrize("count", [1, 8, 128])
@pytest.mark.parametrize("fell", [0.0, 0.5, 0.75, 1.0])
def test_the_least_share_is_where_the_measured_one_is_just_credible(fell: float, count: int) -> None:
    """Wilson's limit solves (p - q)^2 = z^2 q (1 - q) / n for q, z of 95% on one side: up to rounding."""
    q = least_share(fell, count)
    assert 0 <= q <= fell
    assert (fell - q) ** 2 == pytest.approx(1.6448536269514722**2 * q * (1 - q) / count, abs=1e-12)


def test_win_rate_counts_a_tie_as_one_half_and_pairs_by_prompt() -> None:
    scores = {"win": 1.0, "tie": 0.5, "loss": 0.0, "also": 2.0, "unjudged": None, "only here": 1.0}
    baseline = {"loss": 0.5, "tie": 0.5, "win": 0.5, "also": -1.0, "unjudged": 0.0, "only there": 3.0}
    assert (win_rate(scores, baseline).mean, win_rate(scores, baseline).count) == (0.625, 4)
    with pytest.raises(DataError, match="no prompt has a score in both rounds"):
        win_rate({"a": 1.0}, {"b": 1.0})


@given(st.dictionaries(st.text(max_size=2), st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1))
def test_the_two_win_rates_of_a_pair_of_rounds_add_up_to_one(pairs: dict[str, tuple[float, float]]) -> None:
    first, second = ({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))
    assert win_rate(first, second).mean + win_rate(second, first).mean == pytest.approx(1)


def test_kl_estimate_meets_the_exact_kl() -> None:
    # Answers of three independent tokens from p, against q: the KL is three times that of one token.
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    exact = 3 * float(np.sum(p * np.log(p / q)))
    answers_B_T = np.random.default_rng(0).choice(3, size=(4000, 3), p=p)
    logps_p, logps_q = (np.log(probabilities)[answers_B_T].sum(axis=1).tolist() for probabilities in (p, q))
    estimate = kl_estimate(logps_p, logps_q)
    # Four standard errors: beyond them once in 16,000 seeds, and the seed is fixed.
    assert abs(estimate.mean - exact) < 4 * estimate.standard_error < 0.1
    assert estimate.count == 4000
    assert kl_estimate(logps_p, logps_p).mean == 0


@pytest.mark.parametrize(
    ("policy", "reference", "message"),
    [
        ([-1.0], [], "1 log-probabilities of the policy and 0"),
        ([], [], "no answer"),
        ([-math.inf], [-1.0], "not a finite"),
    ],
)
def test_kl_of_what_does_not_fit(policy: list[float], reference: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kl_estimate(policy, reference)


def test_answer_statistics() -> None:
    rows = [
        candidate("a", [5, 6, 2], "w5 w6"), candidate("b", [5, 6, 2], "w5 w6"),
        candidate("c", [2], " "), candidate("d", [5] * 5, "w5", "length"),
    ]  # fmt: skip
    statistics = answer_statistics(to_table(rows, CANDIDATES))
    assert statistics.mean_length == 3.0
    assert statistics.truncated_share == statistics.empty_share == 0.25
    assert statistics.distinct_share == 0.75
    assert statistics.logp_per_token == pytest.approx(-0.5)
    with pytest.raises(DataError, match="is empty"):
        answer_statistics(to_table([], CANDIDATES))


def test_most_changed_takes_the_largest_change_either_way() -> None:
    prompts = {key: key.upper() for key in "abcdef"}
    before = {key: f"{key} before" for key in "abcdef"} | {"d": "same"}
    after = {key: f"{key} after" for key in "abcdef"} | {"d": "same"}
    scores_before = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.0, "e": 0.0, "f": None}
    scores_after = {"a": 0.5, "b": 0.9, "c": 0.1, "d": 1.0, "e": 0.5, "f": 1.0}
    changed = most_changed(scored_answers(prompts, before, after, scores_before, scores_after), 3)
    assert [answer.prompt_id for answer in changed] == ["b", "c", "a"]  # 0.9 twice, then 0.5 before e's
    assert (changed[1].prompt, changed[1].answer_before, changed[1].score_after) == ("C", "c before", 0.1)


def test_both_parts_of_answers_with_thoughts() -> None:
    """Of four: an answer after a thought, one without, a thought that was cut, and an answer that was cut."""
    none: dict[str, Any] = {"thought_tokens": None, "answer": None}
    plain = [
        candidate("a", [8, 5, 9, 6, 2], "t 6"), candidate("b", [6, 2], "6"),
        candidate("c", [8, 5, 5], "t", "length"), candidate("d", [8, 9, 6, 6, 6, 6], "6 6 6 6", "length"),
    ]  # fmt: skip
    thoughts = [{"thought_tokens": 3, "answer": "6"}, none, {"thought_tokens": 3, "answer": None},
                {"thought_tokens": 2, "answer": "6 6 6 6"}]  # fmt: skip
    rows = [row | thought for row, thought in zip(plain, thoughts, strict=True)]
    found, table = thought_statistics(to_table(rows, THINKING_CANDIDATES)), to_table(rows, THINKING_CANDIDATES)
    assert found is not None
    assert (found.thought_length, found.answer_length) == (8 / 4, 8 / 4)
    assert (found.cut_in_thought, found.cut_in_answer) == (1 / 4, 1 / 4)
    whole = answer_statistics(table)
    assert found.thought_length + found.answer_length == whole.mean_length
    assert found.cut_in_thought + found.cut_in_answer == whole.truncated_share


def test_a_policy_that_does_not_think_has_no_statistics_of_thoughts() -> None:
    rows = [candidate("a", [6, 2], "6"), candidate("b", [6, 6], "6 6", "length")]
    assert thought_statistics(to_table(rows, CANDIDATES)) is None
    silent = [row | {"thought_tokens": None, "answer": None} for row in rows]
    assert thought_statistics(to_table(silent, THINKING_CANDIDATES)) is None
