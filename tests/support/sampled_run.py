"""A run whose every completion is written down here, so that a test can say by hand which of them a filter finds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flows.registry.resume import header
from flows.registry.round_summary import RoundSummary
from pipeline.preferences import build_preferences
from pipeline.records import CANDIDATES, EVALUATION_LOGPS, JUDGMENTS, PROMPTS, to_table
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from support.finished_run import commit, small_recipe

Row = Mapping[str, Any]
LIMIT = 10
"""Tokens at which completions are cut."""


def training(round: int, prompt: str, *answers: tuple[str, int, float | None]) -> list[Row]:
    """Completions of a prompt: text, tokens and score, None if the judge's reply could not be read."""
    return [
        {"round": round, "kind": "training", "prompt_id": prompt, "candidate": n, "text": text, "tokens": tokens,
         "score": score, "log_ratio": None}
        for n, (text, tokens, score) in enumerate(answers)
    ]  # fmt: skip


def held_out(round: int, prompt: str, text: str, tokens: int, score: float, log_ratio: float | None) -> Row:
    """The one completion of a held-out prompt."""
    return {"round": round, "kind": "held-out", "prompt_id": prompt, "candidate": 0, "text": text, "tokens": tokens,
            "score": score, "log_ratio": log_ratio}  # fmt: skip


THIRD = 0.1 + 0.2  # not 0.3
ROWS: list[Row] = [
    held_out(0, "e0", "A plain beginning", 3, 0.1, None),
    held_out(0, "e1", "an end", 2, 0.7, None),
    *training(1, "t0", ("Red apples", 2, 1.0), ("green APPLES", 3, 0.5), ("no fruit", 4, THIRD), ("cut off", 10, 0.0)),
    *training(1, "t1", ("the same", 5, 0.5), ("apple red", 10, 0.5), ("the same", 5, 0.5), ("all alike", 6, 0.5)),
    *training(1, "t2", ("unread", 3, None), ("also unread", 3, None), ("it's 100% a_b", 3, 0.25), ("lost", 3, None)),
    held_out(1, "e0", "A red beginning", 3, 0.4, 0.25),
    held_out(1, "e1", "an end of it", 4, 0.6, -1.5),
    *training(2, "t0", ("Red", 2, 0.75), ("Ärger über RÄDER", 7, 0.0), ("red", 2, 0.5), ("read", 1, 0.25)),
]
"""Round 2 is not finished. In round 1 ``t0`` gives a preference, ``t1`` ties, and ``t2`` has one score."""


def sampled_run(store: Store, rows: Sequence[Row] = ROWS, *, alarms: Sequence[str] = (), finished: int = 1) -> Run:
    """Writes the run ``sampled``, of which the rounds up to ``finished`` are finished; round 1 raises the alarms."""
    recipe = small_recipe()
    run = store.create_run("sampled", header(recipe))
    with run.writer() as writer:
        ids = dict.fromkeys(row["prompt_id"] for row in rows)
        commit(store, writer, run.name, 0, "prompts", to_table([_prompt(prompt_id) for prompt_id in ids], PROMPTS))
        for number in sorted({row["round"] for row in rows}):
            for kind, prefix in (("training", ""), ("held-out", "eval_")):
                found = [row for row in rows if row["round"] == number and row["kind"] == kind]
                if found:
                    _commit_kind(store, writer, run.name, number, prefix, found)
            if number <= finished:
                summary = RoundSummary(
                    round=number, policy=f"policy{number}", judge="vader", reward=0.5, reward_se=0.125, judges={},
                    length=3.0, truncated=0.0, distinct=1.0, entropy_per_token=2.0, handover_drift=0.0,
                    sampled_tokens=300, seconds={"sample": 2.0, "judge": 1.0, "hand over": 1.0},
                    alarms=list(alarms) if number == 1 else [],
                )  # fmt: skip
                writer.finish_round(number, summary.model_dump(mode="json"))
    run.refresh()
    return run


def _commit_kind(store: Store, writer: Writer, run: str, number: int, prefix: str, rows: Sequence[Row]) -> None:
    candidates = to_table([_candidate(row) for row in rows], CANDIDATES)
    judges = ("vader", "grammar") if prefix else ("vader",)
    judgments = to_table([_judgment(row, judge) for judge in judges for row in rows], JUDGMENTS)
    tables = {"candidates": candidates, "judgments": judgments}
    if prefix and any(row["log_ratio"] is not None for row in rows):
        tables["logps"] = to_table([_logps(row) for row in rows], EVALUATION_LOGPS)
    if not prefix:
        tables["preferences"] = build_preferences(candidates, judgments, small_recipe().preferences, seed=0)
    for stage, table in tables.items():
        commit(store, writer, run, number, f"{prefix}{stage}", table)


def found(fits: Callable[[Row], bool], rows: Iterable[Row] = ROWS) -> set[tuple[int, str, str, int]]:
    """The rows that fit, as round, kind, prompt and candidate."""
    return {key_of(row) for row in rows if fits(row)}


def key_of(row: Row) -> tuple[int, str, str, int]:
    return row["round"], row["kind"], row["prompt_id"], row["candidate"]


def _prompt(prompt_id: str) -> Row:
    return {
        "prompt_id": prompt_id, "text": f"Tell me of {prompt_id}.", "token_ids": [1], "source": "test",
        "messages": None, "reference_answer": None, "split": "train" if prompt_id.startswith("t") else "evaluation",
    }  # fmt: skip


def _candidate(row: Row) -> Row:
    tokens = row["tokens"]
    return {
        "prompt_id": row["prompt_id"], "candidate": row["candidate"], "token_ids": list(range(tokens)),
        "logprobs": [-1.0] * tokens, "text": row["text"], "finish_reason": "length" if tokens == LIMIT else "stop",
        "seed": 0, "policy": "x",
    }  # fmt: skip


def _judgment(row: Row, judge: str) -> Row:
    unread = row["score"] is None
    return {
        "prompt_id": row["prompt_id"], "candidate": row["candidate"], "score_std": None, "components": [],
        "rationale": None, "score": row["score"] if judge == "vader" else 0.9, "judge": judge, "judge_version": "1",
        "status": "unparsable" if unread else "ok", "latency": 0.0, "raw": None,
    }  # fmt: skip


def _logps(row: Row) -> Row:
    return {
        "prompt_id": row["prompt_id"], "candidate": 0, "policy": -3.0, "previous": -3.0,
        "initial": -3.0 - row["log_ratio"], "tokens": row["tokens"],
    }  # fmt: skip
