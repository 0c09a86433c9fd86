"""The table of rounds: columns for thoughts, and none for policies that do not think."""

from typing import Any

from flows.registry.round_summary import RoundSummary, rows_of

LENGTHS = {"thought_length": 12.25, "answer_length": 4.0, "cut_in_thought": 0.125, "cut_in_answer": 0.0}
COLUMNS = {"thought", "answer", "cut in thought", "cut in answer"}


def summary(number: int, **more: Any) -> RoundSummary:
    return RoundSummary(
        round=number, policy="x", judge="vader", reward=0.5, reward_se=None, judges={}, length=16.25, truncated=0.125,
        distinct=1.0, entropy_per_token=2.0, handover_drift=0.0, sampled_tokens=1, seconds={"sample": 1.0}, **more,
    )  # fmt: skip


def test_rounds_that_think_have_columns_for_both_parts() -> None:
    first, second = rows_of([summary(0), summary(1, **LENGTHS)])
    assert {name: second[name] for name in COLUMNS} == {
        "thought": "12.2", "answer": "4.0", "cut in thought": "12.5%", "cut in answer": "0.0%",
    }  # fmt: skip
    assert {first[name] for name in COLUMNS} == {"-"}
    assert [*first] == [*second]


def test_rounds_that_do_not_think_have_none() -> None:
    (row,) = rows_of([summary(0)])
    assert not COLUMNS & row.keys()
