"""Scores by hand of another judge, beside the small run of ``finished_run``."""

from collections.abc import Callable

from flows.registry.catalog import REJUDGMENTS
from pipeline.records import JUDGMENTS, to_table
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.shards import write_table

Score = Callable[[int], float | None]
SCORES: dict[str, Score] = {"t0": lambda index: -float(index), "t1": lambda index: float(index), "t2": lambda _: 0.5}
"""The run prefers completion 3 to 0 of each prompt. This judge turns t0 round, agrees on t1, and ties in t2."""


def judge_again(store: Store, rounds: dict[int, tuple[str, ...]], name: str = "other") -> None:
    """Commits whole rounds, or parts of them, under a name."""
    run = store.run("small")
    annex = store.create_annex(run, name, {"format": 1, "judge": {"kind": "vader"}, "scoring": "s"})
    with annex.writer() as writer:
        for number, prompts in rounds.items():
            rows = [
                {
                    "prompt_id": prompt, "candidate": index, "judge": "other", "judge_version": "1", "status": "ok",
                    "score": SCORES[prompt](index), "score_std": None, "components": [], "rationale": None,
                    "latency": 0.0, "raw": None,
                }
                for prompt in prompts for index in range(4)
            ]  # fmt: skip
            file = write_table(store, annex.name, number, REJUDGMENTS, to_table(rows, JUDGMENTS), 0)
            writer.commit(Key(number, REJUDGMENTS, 0), [file])
