"""The rules that turn judgments into preferences: hand-made cases, and properties that hold for any round."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import PreferencesConfig
from pipeline.dpo.types import PreferenceGroup
from pipeline.errors import DataError
from pipeline.preferences import REASONS, build_preferences, drop_counts, soft_label
from pipeline.records import CANDIDATES, JUDGMENTS, PREFERENCES, to_table

RULES: tuple[str, ...] = get_args(PreferencesConfig.model_fields["rule"].annotation)
RANKING_RULES = ("full_ranking", "top_m")


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
    top = {"top": 2} if rule == "top_m" else {}
    wanted = PreferencesConfig.model_validate({"rule": rule, **top, **config})
    table = build_preferences(to_table(candidates, CANDIDATES), to_table(judgments, JUDGMENTS), wanted, seed=seed)
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
        ([1.0, 1.0, 1.0], {}, {}, "agree"),
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


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "correct_vs_incorrect"])
def test_what_is_not_above_the_margin_is_a_tie(rule: str) -> None:
    assert build([0.5, 0.6, 0.4], rule, min_margin=0.25)[0]["drop_reason"] == "tie"
    assert build([0.5, 0.75], rule, min_margin=0.25)[0]["drop_reason"] == "tie"


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
def test_a_prompt_where_all_are_correct_or_none_is_dropped(scores: list[float]) -> None:
    assert build(scores, "correct_vs_incorrect")[0]["drop_reason"] == "agree"


def test_every_correct_answer_against_every_incorrect_one() -> None:
    scores = [0.0, 1.0, 0.0, 1.0, None]
    rows = build(scores, "correct_vs_incorrect")
    assert [row["candidates"] for row in rows] == [[1, 0], [1, 2], [3, 0], [3, 2]]
    drawn = {
        tuple(build(scores, "correct_vs_incorrect", max_pairs=1, seed=seed)[0]["candidates"]) for seed in range(40)
    }
    assert drawn == {(1, 0), (1, 2), (3, 0), (3, 2)}
    with pytest.raises(DataError, match=r"the score 0\.5, and the rule correct_vs_incorrect takes 0 and 1 alone"):
        build([0.5, 1.0], "correct_vs_incorrect")


def test_best_against_each_that_it_beats() -> None:
    rows = build([0.5, 0.9, 0.85, 0.1], "best_vs_each", min_margin=0.1)
    assert [row["candidates"] for row in rows] == [[1, 0], [1, 3]]


def test_a_cap_draws_by_the_seed_and_keeps_the_order() -> None:
    every = [row["candidates"] for row in build([0.0, 1.0, 2.0, 3.0], "all_pairs")]
    found = set()
    for seed in range(60):
        drawn = [row["candidates"] for row in build([0.0, 1.0, 2.0, 3.0], "all_pairs", max_pairs=3, seed=seed)]
        assert drawn == [pair for pair in every if pair in drawn]
        assert len(drawn) == 3
        found.add(str(drawn))
    assert len(found) > 10  # of 20


def test_kept_ties_share_a_place() -> None:
    # 0.95 is within the margin of 1.0, and 0.9 within that of 0.95: a chain, all in one place.
    scores = [0.9, 0.5, 1.0, 0.95, 0.45]
    (row,) = build(scores, "full_ranking", min_margin=0.075, ties="keep")
    assert (row["candidates"], row["ranks"]) == ([2, 3, 0, 1, 4], [0, 0, 0, 1, 1])
    (row,) = build(scores, "full_ranking", min_margin=0.075)
    assert (row["candidates"], row["ranks"]) == ([2, 0, 1], None)
    assert build([1.0, 0.95], "full_ranking", min_margin=0.1, ties="keep")[0]["drop_reason"] == "tie"


def test_the_first_places_are_known_and_the_others_tie_behind_them() -> None:
    (row,) = build([0.0, 3.0, 1.0, 2.0, 1.0], "top_m", top=2)
    assert (row["candidates"], row["ranks"], row["margin"]) == ([1, 3, 2, 4, 0], [0, 1, 2, 2, 2], 3.0)
    (row,) = build([0.0, 3.0, 1.0, 3.0], "top_m", top=2)
    assert (row["candidates"], row["ranks"]) == ([1, 2, 0], None)  # 3 ties with 1, and only three are left
    (row,) = build([0.0, 3.0, 1.0, 3.0, 0.5], "top_m", top=2, ties="keep")
    assert (row["candidates"], row["ranks"]) == ([1, 3, 2, 4, 0], [0, 0, 1, 2, 2])


def test_a_penalty_of_length_is_in_the_order_and_the_margin() -> None:
    # 1.0 - 0.2 * 6 = -0.2 and 0.5 - 0.2 * 2 = 0.1.
    changes = {0: {"token_ids": [3, 4, 5, 6, 7, 2], "logprobs": [-1.0] * 6}}
    (row,) = build([1.0, 0.5], changes=changes, length_penalty=0.2)
    assert (row["candidates"], row["scores"]) == ([1, 0], [0.5, 1.0])
    assert row["margin"] == pytest.approx(0.3, abs=1e-12)
    assert build([1.0, 0.5], changes=changes)[0]["candidates"] == [0, 1]


def test_pairs_that_are_not_probable_enough_are_left_out() -> None:
    # Phi(1 / sqrt(2)) = 0.760 for one step, Phi(sqrt(2)) = 0.921 for two.
    rows = build([0.0, 1.0, 2.0], "all_pairs", stds=[1.0, 1.0, 1.0], min_probability=0.9)
    assert [row["candidates"] for row in rows] == [[2, 0]]
    assert rows[0]["soft_label"] is None
    assert build([0.0, 1.0], stds=[1.0, 1.0], min_probability=0.9)[0]["drop_reason"] == "unsure"
    assert build([0.0, 1.0], stds=[1.0, math.nan], min_probability=0.9)[0]["drop_reason"] == "unjudged"


def test_probabilities_that_the_judge_states_for_a_pair_come_first() -> None:
    def stated(*beats: float) -> list[dict[str, Any]]:
        table = to_table([candidate("p", k) for k in range(2)], CANDIDATES)
        judgments = [
            judgment("p", k, float(k), components=[{"name": f"beats.{1 - k}", "value": beats[k]}]) for k in range(2)
        ]
        config = PreferencesConfig(soft_labels=True)
        return list(build_preferences(table, to_table(judgments, JUDGMENTS), config, seed=0).to_pylist())

    assert stated(0.3, 0.7)[0]["soft_label"] == 0.7
    assert stated(0.0, 1.0)[0]["soft_label"] == 1
    for wrong in (math.nan, math.inf, 1.5, -0.1, 0.4):  # no probability, or the judge's own score against it
        assert stated(0.3, wrong)[0]["drop_reason"] == "unsure"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "top_m"}, "rule top_m needs top"),
        ({"top": 2}, "no other rule takes it"),
        ({"ties": "keep"}, "ties 'keep' is for rankings"),
        ({"rule": "full_ranking", "min_probability": 0.6}, "soft_labels and min_probability are for pairs"),
        ({"rule": "correct_vs_incorrect", "length_penalty": 0.1}, "a verdict has no margin"),
    ],
)
def test_options_that_do_not_fit_the_rule(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreferencesConfig.model_validate(options)


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


SCORE = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf, 1.7e308]), st.floats(-5, 5))
ANSWER = st.tuples(
    SCORE,
    st.sampled_from([0.0, 0.5, 3.0, math.nan, math.inf, -1.0]),  # standard deviation
    st.lists(st.integers(3, 4), min_size=1, max_size=2),  # few different answers, so that some are duplicates
    st.sampled_from(["w1", "w2", ""]),
    st.sampled_from(["stop", "length"]),
)
PAIR_RULES = tuple(rule for rule in RULES if rule not in RANKING_RULES)
COMMON = {
    "min_margin": st.sampled_from([0.0, 0.3]),
    "length_penalty": st.sampled_from([0.0, 0.2]),
    "max_pairs": st.sampled_from([None, 1, 3]),
    "drop_truncated": st.booleans(),
}
PAIRS = st.fixed_dictionaries({
    **COMMON, "rule": st.sampled_from(PAIR_RULES), "soft_labels": st.booleans(),
    "min_probability": st.sampled_from([None, 0.5, 0.8]),
})  # fmt: skip
RANKINGS = st.fixed_dictionaries({
    **COMMON, "rule": st.sampled_from(RANKING_RULES), "ties": st.sampled_from(["drop", "keep"]),
    "top": st.integers(1, 4),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    prompts=st.lists(st.lists(ANSWER, min_size=1, max_size=5), min_size=1, max_size=4),
    options=PAIRS | RANKINGS,
    order=st.randoms(use_true_random=False),
)
def test_any_round(prompts: Any, options: dict[str, Any], order: Any) -> None:
    if options["rule"] == "correct_vs_incorrect":
        options = options | {"length_penalty": 0.0}
    if options["rule"] != "top_m":
        options = options | {"top": None}
    config = PreferencesConfig(**options)
    candidates, judgments = [], []
    for p, answers in enumerate(prompts):
        for k, (score, std, token_ids, text, finish) in enumerate(answers):
            if options["rule"] == "correct_vs_incorrect" and score is not None and abs(score) < 1e300:
                score = float(score > 0)  # a verifier
            candidates.append(candidate(f"p{p}", k, token_ids=token_ids, text=text, finish_reason=finish))
            judgments.append(judgment(f"p{p}", k, score, score_std=std))
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
        assert len(rows) <= (config.max_pairs or math.inf)
        assert len({tuple(row["candidates"]) for row in rows}) == len(rows)
        for row in rows:
            check_row(row, [by_key[prompt_id, index] for index in row["candidates"]], config)

    # The order of the rows within the tables does not matter, but for the order of the prompts in the result.
    order.shuffle(judgments)
    shuffled = sorted(candidates, key=lambda row: (row["prompt_id"], order.random()))
    again = build_preferences(to_table(shuffled, CANDIDATES), to_table(judgments, JUDGMENTS), config, seed=1)
    assert again.equals(table)


def check_row(row: dict[str, Any], used: list[dict[str, Any]], config: PreferencesConfig) -> None:
    """A preference is best first, of candidates that may be used, and holds no number that is none."""
    counts = [len(answer["token_ids"]) for answer in used]
    values = [score - config.length_penalty * count for score, count in zip(row["scores"], counts, strict=True)]
    ranks = row["ranks"] or list(range(len(used)))
    assert row["ranks"] is None or row["ranks"] != list(range(len(used)))
    assert row["kind"] == ("ranking" if config.ranks else "pair")
    assert len(used) >= 2 if config.ranks else len(used) == 2
    numbers = [*row["scores"], *row["reference_logps"], row["margin"], *([row["soft_label"]] * config.soft_labels)]
    assert all(math.isfinite(number) for number in numbers)
    for (a, rank_a), (b, rank_b) in pairwise(zip(values, ranks, strict=True)):
        assert a >= b
        assert rank_b - rank_a in (0, 1)
        assert rank_a == rank_b or a - b > config.min_margin
    assert ranks[0] == 0 < ranks[-1] <= (config.top or math.inf)
    assert config.ties == "keep" or config.rule == "top_m" or len(set(ranks)) == len(ranks)
    assert len({tuple(answer["token_ids"]) for answer in used}) == len(used)
    assert all(answer["text"] for answer in used)
    assert not (config.drop_truncated and any(answer["finish_reason"] == "length" for answer in used))
    assert row["reference_logps"] == [math.fsum(answer["logprobs"]) for answer in used]
    assert row["token_counts"] == counts
    assert row["margin"] == values[0] - values[-1] > config.min_margin
    assert (row["soft_label"] is not None) == config.soft_labels
    if config.soft_labels:
        assert (config.min_probability or 0.5) <= row["soft_label"] <= 1
    # What the update takes: places that never fall, and are not all equal.
    PreferenceGroup(
        prompt_id="p", prompt_token_ids=[1], candidate_token_ids=[answer["token_ids"] for answer in used],
        reference_logps=row["reference_logps"], ranks=row["ranks"], soft_label=row["soft_label"],
    )  # fmt: skip


def test_no_candidates_give_no_preferences() -> None:
    nothing = build_preferences(to_table([], CANDIDATES), to_table([], JUDGMENTS), PreferencesConfig(), seed=0)
    assert nothing.num_rows == 0
    assert isinstance(nothing, pa.Table)
