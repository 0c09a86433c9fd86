"""The rules that turn judgments into preferences: hand-made cases, and properties that hold for any round."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import PreferencesConfig
from pipeline.errors import DataError
from pipeline.preferences import REASONS, build_preferences, drop_counts, soft_label
from pipeline.records import CANDIDATES, JUDGMENTS, PREFERENCES, to_table

RULES = ("best_vs_worst", "best_vs_random", "all_pairs", "full_ranking")


def candidate(prompt_id: str, index: int, **changes: Any) -> dict[str, Any]:
    tokens = changes.get("token_ids", [index + 3, 2])
    row = {
        "prompt_id": prompt_id, "candidate": index, "token_ids": tokens, "text": f"w{index}",
        "logprobs": [-0.5 * (index + 1)] * len(tokens), "finish_reason": "stop", "seed": index, "policy": "abc",
    }  # fmt: skip
    return row | changes


def judgment(prompt_id: str, index: int, score: float | None, **changes: Any) -> dict[str, Any]:
    row = {
        "prompt_id": prompt_id, "candidate": index, "score": score, "score_std": None, "components": [],
        "rationale": None, "judge": "j", "judge_version": "1", "status": "ok", "latency": 0.0, "raw": None,
    }  # fmt: skip
    return row | changes


def build(
    scores: Sequence[float | None], rule: str = "best_vs_worst", *, changes: dict[int, Any] | None = None,
    stds: Sequence[float | None] = (), seed: int = 0, **config: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Preferences of one prompt with these scores."""
    candidates = [candidate("p", k, **(changes or {}).get(k, {})) for k in range(len(scores))]
    judgments = [judgment("p", k, score) for k, score in enumerate(scores)]
    for row, std in zip(judgments, stds, strict=False):
        row["score_std"] = std
    settings = PreferencesConfig(rule=rule, **config)  # type: ignore[arg-type]
    table = build_preferences(to_table(candidates, CANDIDATES), to_table(judgments, JUDGMENTS), settings, seed=seed)
    assert table.schema.equals(PREFERENCES, check_metadata=True)
    return list(table.to_pylist())


def test_best_against_worst() -> None:
    (row,) = build([0.1, 0.9, -0.4, 0.5])
    assert row == {
        "prompt_id": "p", "kind": "pair", "candidates": [1, 2], "ranks": None, "scores": [0.9, -0.4], "margin": 1.3,
        "soft_label": None, "reference_logps": [-2.0, -3.0], "token_counts": [2, 2], "rule": "best_vs_worst",
        "drop_reason": None, "policy": "abc",
    }  # fmt: skip


def test_equal_scores_are_taken_by_lowest_index() -> None:
    assert build([0.0, 1.0, 1.0, 0.0])[0]["candidates"] == [1, 0]


def test_best_against_random_takes_only_what_the_best_beats() -> None:
    found = {
        tuple(build([0.9, 0.85, 0.1, 0.2], "best_vs_random", min_margin=0.1, seed=s)[0]["candidates"])
        for s in range(40)
    }
    assert found == {(0, 2), (0, 3)}
    assert build([1.0, 0.0, 0.5], "best_vs_random", seed=3) == build([1.0, 0.0, 0.5], "best_vs_random", seed=3)


def test_all_pairs_that_are_no_tie() -> None:
    rows = build([0.5, 1.0, 0.5, 0.0], "all_pairs")
    assert [row["candidates"] for row in rows] == [[1, 0], [1, 2], [1, 3], [0, 3], [2, 3]]
    assert [row["margin"] for row in rows] == [0.5, 0.5, 1.0, 0.5, 0.5]


def test_a_ranking_leaves_out_what_ties_with_the_last_one_taken() -> None:
    (row,) = build([0.5, 1.0, 0.45, 0.0, 0.3], "full_ranking", min_margin=0.1)
    assert (row["kind"], row["candidates"], row["margin"]) == ("ranking", [1, 0, 4, 3], 1.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("scores", "changes", "config", "reason"),
    [
        ([0.5, 0.5, 0.5], {}, {}, "agree"),
        ([0.5, 0.6, 0.4], {}, {"min_margin": 0.25}, "tie"),
        ([0.5, 0.75], {}, {"min_margin": 0.25}, "tie"),  # not above the margin
        ([1.0, 0.0, 0.0], {k: {"token_ids": [7, 2]} for k in range(3)}, {}, "duplicate"),
        ([1.0, 0.0], {0: {"text": " "}}, {}, "empty"),
        ([1.0, 0.0], {1: {"finish_reason": "length"}}, {"drop_truncated": True}, "truncated"),
        ([None, 0.0], {}, {}, "unjudged"),
        ([math.nan, 0.0], {}, {}, "unjudged"),
        ([math.inf, 0.0], {}, {}, "unjudged"),
        ([1.0], {}, {}, "single"),
        ([None, None, 0.5, 1.0], {3: {"text": ""}}, {}, "unjudged"),  # the commonest reason
    ],
)
def test_a_prompt_without_a_preference_keeps_its_reason(
    rule: str, scores: Any, changes: Any, config: Any, reason: str
) -> None:
    (row,) = build(scores, rule, changes=changes, **config)
    assert (row["kind"], row["drop_reason"], row["rule"], row["policy"]) == ("dropped", reason, rule, "abc")
    assert row["candidates"] == row["scores"] == row["reference_logps"] == row["token_counts"] == []
    assert row["margin"] is row["soft_label"] is None


def test_what_is_left_out_does_not_take_part() -> None:
    changes = {0: {"text": ""}, 2: {"finish_reason": "length"}, 4: {"token_ids": [4, 2]}}
    (row,) = build([9.0, 0.5, -9.0, 0.1, -5.0], changes=changes, drop_truncated=True)
    assert row["candidates"] == [1, 3]
    (row,) = build([9.0, 0.5, -9.0, 0.1, -5.0], changes=changes)
    assert row["candidates"] == [1, 2]  # truncated answers stay unless the recipe says so


def test_a_judgment_that_is_not_ok_is_none() -> None:
    candidates = to_table([candidate("p", 0), candidate("p", 1), candidate("q", 0), candidate("q", 1)], CANDIDATES)
    rows = [judgment("p", 0, 1.0, status="timed_out"), judgment("p", 1, 0.0), judgment("q", 1, 0.0)]
    table = build_preferences(candidates, to_table(rows, JUDGMENTS), PreferencesConfig(), seed=0)
    assert table["drop_reason"].to_pylist() == ["unjudged", "unjudged"]
    assert drop_counts(table) == {"unjudged": 2}


def test_soft_labels_are_the_probability_of_the_order() -> None:
    # (1 - 0) / sqrt(0.6^2 + 0.8^2) = 1, and Phi(1) = 0.8413447461.
    (row,) = build([0.0, 1.0], stds=[0.6, 0.8], soft_labels=True)
    assert row["soft_label"] == pytest.approx(0.8413447461, abs=1e-10)
    assert soft_label(0.0, 1.0, 0.6, 0.8) == pytest.approx(1 - 0.8413447461, abs=1e-10)
    assert (soft_label(1, 0, 0, 0), soft_label(0, 1, 0, 0), soft_label(1, 1, 0, 0)) == (1.0, 0.0, 0.5)


def test_soft_labels_need_standard_deviations_and_pairs() -> None:
    with pytest.raises(DataError, match=r"prompt p has scores with the standard deviations 0\.5 and None"):
        build([1.0, 0.0], stds=[0.5, None], soft_labels=True)
    with pytest.raises(ValidationError, match="soft_labels and min_probability are for pairs"):
        build([1.0, 0.0], "full_ranking", soft_labels=True)


@pytest.mark.parametrize(
    ("candidates", "judgments", "message"),
    [
        ([candidate("p", 0), candidate("p", 0)], [], "two candidates of one index"),
        ([candidate("p", 0)], [judgment("p", 0, 1.0)] * 2, "candidate 0 of prompt p has two judgments"),
        ([candidate("p", 0)], [judgment("p", 1, 1.0)], "a judgment of candidate 1, but no such candidate"),
        ([candidate("p", 0, logprobs=[-1.0])], [], "has 2 tokens and 1 log-probabilities"),
        ([candidate("p", 0, logprobs=[-1.0, -math.inf])], [], "sum -inf: a finite one"),
    ],
)
def test_tables_that_do_not_fit(candidates: Any, judgments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_preferences(to_table(candidates, CANDIDATES), to_table(judgments, JUDGMENTS), PreferencesConfig(), seed=0)


SCORE = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf]), st.floats(-5, 5))
ANSWER = st.tuples(
    SCORE,
    st.lists(st.integers(3, 4), min_size=1, max_size=2),  # few different answers, so that some are duplicates
    st.sampled_from(["w1", "w2", ""]),
    st.sampled_from(["stop", "length"]),
)


@given(
    prompts=st.lists(st.lists(ANSWER, min_size=1, max_size=5), min_size=1, max_size=4),
    rule=st.sampled_from(RULES),
    min_margin=st.sampled_from([0.0, 0.3]),
    drop_truncated=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_round(prompts: Any, rule: Any, min_margin: float, drop_truncated: bool, order: Any) -> None:
    candidates, judgments = [], []
    for p, answers in enumerate(prompts):
        for k, (score, token_ids, text, finish) in enumerate(answers):
            candidates.append(candidate(f"p{p}", k, token_ids=token_ids, text=text, finish_reason=finish))
            judgments.append(judgment(f"p{p}", k, score))
    config = PreferencesConfig(rule=rule, min_margin=min_margin, drop_truncated=drop_truncated)
    table = build_preferences(to_table(candidates, CANDIDATES), to_table(judgments, JUDGMENTS), config, seed=1)

    by_key = {(row["prompt_id"], row["candidate"]): row for row in candidates}
    rows_of: dict[str, list[Any]] = defaultdict(list)
    for row in table.to_pylist():
        rows_of[row["prompt_id"]].append(row)
    assert set(rows_of) == {f"p{p}" for p in range(len(prompts))}
    for prompt_id, rows in rows_of.items():
        if rows[0]["kind"] == "dropped":
            assert len(rows) == 1
            assert rows[0]["drop_reason"] in REASONS
            continue
        for row in rows:
            used = [by_key[prompt_id, index] for index in row["candidates"]]
            steps = [a - b for a, b in zip(row["scores"], row["scores"][1:], strict=False)]
            assert len(used) >= 2
            assert all(math.isfinite(score) for score in row["scores"])
            assert all(step > min_margin for step in steps)  # best first, and no tie
            assert len({tuple(answer["token_ids"]) for answer in used}) == len(used)
            assert all(answer["text"] for answer in used)
            assert not (drop_truncated and any(answer["finish_reason"] == "length" for answer in used))
            assert row["reference_logps"] == [math.fsum(answer["logprobs"]) for answer in used]
            assert row["token_counts"] == [len(answer["token_ids"]) for answer in used]
            assert row["margin"] == row["scores"][0] - row["scores"][-1]

    # The order of the rows within the tables does not matter, but for the order of the prompts in the result.
    order.shuffle(judgments)
    shuffled = sorted(candidates, key=lambda row: (row["prompt_id"], order.random()))
    again = build_preferences(to_table(shuffled, CANDIDATES), to_table(judgments, JUDGMENTS), config, seed=1)
    assert again.equals(table)


def test_no_candidates_give_no_preferences() -> None:
    nothing = build_preferences(to_table([], CANDIDATES), to_table([], JUDGMENTS), PreferencesConfig(), seed=0)
    assert nothing.num_rows == 0
    assert isinstance(nothing, pa.Table)
