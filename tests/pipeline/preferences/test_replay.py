"""Which preferences of earlier rounds are trained on again."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PreferencesConfig
from pipeline.errors import DataError
from pipeline.preferences import choose_replayed, describe_replayed, replayed_table
from pipeline.records import CANDIDATES, PREFERENCES, to_table


def preferences(number: int, count: int, dropped: int = 0, **changes: Any) -> pa.Table:
    """Of round ``number``, so many pairs and so many prompts without one."""
    pair = {
        "kind": "pair", "candidates": [1, 0], "ranks": None, "scores": [1.0, 0.0], "margin": 1.0, "soft_label": None,
        "reference_logps": [-1.0, -2.0], "token_counts": [2, 2], "rule": "best_vs_worst", "drop_reason": None,
        "policy": f"policy {number - 1}", **changes,
    }  # fmt: skip
    none = {"kind": "dropped", "candidates": [], "scores": [], "margin": None, "drop_reason": "tie"}
    rows = [{"prompt_id": f"p{n}", **pair, **(none if n >= count else {})} for n in range(count + dropped)]
    return to_table(rows, PREFERENCES)


def candidates(number: int, count: int) -> pa.Table:
    """Two of each prompt; the token ids tell round, prompt and index."""
    return to_table([
        {"prompt_id": f"p{n}", "candidate": k, "token_ids": [number, n, k], "text": "w", "logprobs": [-1.0] * 3,
         "finish_reason": "stop", "seed": 0, "policy": f"policy {number - 1}"}
        for n in range(count) for k in range(2)
    ], CANDIDATES)  # fmt: skip


def config(share: float, **more: Any) -> PreferencesConfig:
    return PreferencesConfig.model_validate({"replay": {"share": share}, **more})


@settings(max_examples=100, deadline=None)
@given(
    own=st.integers(0, 12), share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), seed=st.integers(0, 9),
    pool=st.dictionaries(st.integers(1, 5), st.integers(0, 6), max_size=3),
)  # fmt: skip
def test_as_many_as_the_share_allows(own: int, share: float, seed: int, pool: dict[int, int]) -> None:
    mine = preferences(6, own, dropped=2)
    earlier = {number: preferences(number, count, dropped=1) for number, count in pool.items()}
    chosen = choose_replayed(mine, earlier, config(share), seed=seed)
    table = replayed_table(chosen, {number: candidates(number, count) for number, count in pool.items()})
    count = table.num_rows
    # 12 * 0.9 / 0.1 is 108 in exact arithmetic.
    assert count == min(round(own * share * 20) // round((1 - share) * 20), sum(pool.values()))
    assert count == 0 or count / (count + own) <= share + 1e-9
    keys = list(zip(table["origin_round"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)
    for row in table.to_pylist():
        number, prompt = row["origin_round"], int(row["prompt_id"][1:])
        assert row["token_ids"] == [[number, prompt, 1], [number, prompt, 0]]  # of its own round, best first
        assert row["policy"] == f"policy {number - 1}"
        assert row["kind"] == "pair"
    assert table.equals(
        replayed_table(
            choose_replayed(mine, dict(reversed(earlier.items())), config(share), seed=seed),
            {number: candidates(number, count) for number, count in pool.items()},
        )
    )


def test_seeds_choose_otherwise() -> None:
    earlier = {1: preferences(1, 20)}
    drawn = {
        str([row["prompt_id"] for row in choose_replayed(preferences(2, 5), earlier, config(0.5), seed=seed)[1]])
        for seed in range(10)
    }
    assert len(drawn) > 5


def test_what_a_fork_made_otherwise_is_passed_over() -> None:
    earlier = {1: preferences(1, 5), 2: preferences(2, 5, soft_label=0.7), 3: preferences(3, 5, kind="ranking")}
    mine = preferences(4, 10)
    for changes, origin in (
        ({}, 1), ({"soft_labels": True}, 2), ({"rule": "full_ranking"}, 3),
    ):  # fmt: skip
        assert set(choose_replayed(mine, earlier, config(0.5, **changes), seed=0)) == {origin}


def test_tables_of_the_first_version_have_no_ranks() -> None:
    chosen = choose_replayed(preferences(2, 2), {1: preferences(1, 2).drop_columns(["ranks"])}, config(0.5), seed=0)
    assert replayed_table(chosen, {1: candidates(1, 2)})["ranks"].to_pylist() == [None, None]


def test_tables_that_do_not_belong_together() -> None:
    chosen = choose_replayed(preferences(2, 2), {1: preferences(1, 2)}, config(0.5), seed=0)
    with pytest.raises(DataError, match="round 1 has a preference for candidate 1 of prompt p1, but no such candidate"):
        replayed_table(chosen, {1: candidates(1, 1)})


def test_how_old_they_are() -> None:
    earlier = {number: preferences(number, 1) for number in (1, 3)}
    chosen = choose_replayed(preferences(4, 6), earlier, config(0.5), seed=0)
    table = replayed_table(chosen, {number: candidates(number, 1) for number in (1, 3)})
    found = describe_replayed(table, preferences(4, 6, dropped=3), 4)
    assert found == {"replayed": 2, "replayed_share": 0.25, "replayed_age": 2.0}  # (3 + 1) / 2
    alone = describe_replayed(table.slice(0, 1), preferences(4, 0, dropped=3), 4)
    assert (alone["replayed"], alone["replayed_share"]) == (1, 1.0)
    empty = describe_replayed(table.slice(0, 0), preferences(4, 6), 4)
    assert empty == {"replayed": 0, "replayed_share": 0.0, "replayed_age": None}
