"""What two runs have in common, apart from their names, paths and times."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from storage.log.run import Run
from storage.log.store import Store
from storage.tables.shards import read_table

STAGES = (
    "prompts", "candidates", "judgments", "preferences", "replayed", "metrics", "probe", "eval_candidates",
    "eval_judgments", "eval_logps", "preference_logps", "served_candidates", "served_judgments", "gate_prompts",
    "gate_candidates", "gate_judgments", "gate_text", "gate_tasks",
)  # fmt: skip
TIMES = ("latency", "seconds")
PAID = ("replies_cached", "paid_tokens_in", "paid_tokens_out", "cost")
"""What was asked for anew depends on what a process before had asked for already."""
WAYS = ("weights_from",)
"""What a round's metrics say of how it was done: a run that is resumed reads weights that another one had in memory."""


def tables(store: Store, run: Run, round: int) -> dict[str, pa.Table]:
    """The tables of a round, without the columns that tell times, and what was asked for anew."""
    found = {}
    for stage in STAGES:
        if files := run.files(round, stage):
            table = read_table(store, files)
            found[stage] = table.drop_columns([name for name in (*TIMES, *PAID) if name in table.column_names])
    return found


def weights(run: Run, round: int) -> dict[str | None, str]:
    """Name and SHA-256 of each file of a round's checkpoint."""
    return {file.name: file.sha256 for file in run.entries(round=round, stage="checkpoint")[-1].files}


def assert_same(
    root: Any, name: str, other_root: Any, other_name: str, rounds: range,
    costs: Sequence[str] = ("seconds", "judge_usage"),
) -> None:  # fmt: skip
    """Every table has the same rows in the same order, every checkpoint the same bytes, and all but costs are equal."""
    store, other_store = Store.open(root), Store.open(other_root)
    run, other = store.run(name), other_store.run(other_name)
    for round in rounds:
        mine, theirs = tables(store, run, round), tables(other_store, other, round)
        assert mine.keys() == theirs.keys()
        for stage, table in mine.items():
            assert table.equals(theirs[stage]), f"round {round}: {stage} differs"
        assert weights(run, round) == weights(other, round), f"round {round}: the weights differ"
        mine_figures, their_figures = (
            {**r.rounds()[round].meta, **dict.fromkeys((*costs, *WAYS))} for r in (run, other)
        )
        assert mine_figures == their_figures, f"round {round}: the metrics differ"
