"""Preferences of a round as a dataset in the conversational form that other preference trainers read.

Pairs have a ``prompt``, and a ``chosen`` and a ``rejected`` answer; rankings have a ``prompt`` and its ``completions``,
best first. Each is a list of messages, {role, content}.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.host.new_directory import check_new, new_directory
from flows.publish.cards import dataset_card
from pipeline.errors import DataError
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table

Message = dict[str, str]
_PARQUET = "data/train-00000-of-00001.parquet"
_COLUMNS = {
    "pair": {
        "prompt": "the conversation so far, a list of messages; a plain text is one message of the user",
        "chosen": "the better answer, one message of the assistant",
        "rejected": "the worse answer, one message of the assistant",
        "score_chosen": "the judge's score of the better answer",
        "score_rejected": "the judge's score of the worse answer",
        "prompt_id": "first 16 hexadecimal digits of the SHA-256 of the prompt's content",
    },
    "ranking": {
        "prompt": "the conversation so far, a list of messages; a plain text is one message of the user",
        "completions": "the answers, best first, each a list with one message of the assistant",
        "ranks": "the place of each, from 0; equal places are ties",
        "scores": "the judge's scores, in the same order",
        "prompt_id": "first 16 hexadecimal digits of the SHA-256 of the prompt's content",
    },
}


def export_preferences(store: Store, run: Run, round: int, to: Path) -> int:
    """Writes the preferences of a round to a new directory, with a dataset card; returns how many there are.

    ``datasets.load_dataset(str(to), split="train")`` reads it. The directory appears as a whole, or not at all.

    Raises:
        ConfigError: there is something at ``to`` already.
        NotCommittedError: the round has no preferences, as round 0.
        StorageFullError, StorageAccessError: it could not be written; nothing is left behind.
        DataError: every prompt of the round was dropped, or pairs and rankings are mixed.
    """
    check_new(to)
    kind, rows = _rows(store, run, round)
    judge = table(store, run, round, "judgments", ["judge", "judge_version"]).to_pylist()[0]
    card = dataset_card(run, round, kind, _COLUMNS[kind], rows, f"{judge['judge']}, version {judge['judge_version']}")
    with new_directory(to) as staged:
        (staged / _PARQUET).parent.mkdir(parents=True)
        _write_parquet(rows, kind, staged / _PARQUET)
        (staged / "README.md").write_text(card, encoding="utf-8")
    return len(rows)


def _rows(store: Store, run: Run, round: int) -> tuple[str, list[dict[str, Any]]]:
    kept = [row for row in table(store, run, round, "preferences").to_pylist() if row["kind"] != "dropped"]
    kinds = {row["kind"] for row in kept}
    if len(kinds) != 1:
        found = f"both {' and '.join(sorted(kinds))}" if kinds else "no preference, for all its prompts were dropped"
        raise DataError(f"round {round} of run '{run.name}' has {found}: there is nothing to export as one dataset")
    (kind,) = kinds
    prompts = _prompts(table(store, run, 0, "prompts"))
    answers = _answers(table(store, run, round, "candidates"))
    form = _pair if kind == "pair" else _ranking
    return kind, [
        {
            "prompt": prompts[row["prompt_id"]],
            **form([answers[row["prompt_id"], index] for index in row["candidates"]], row),
            "prompt_id": row["prompt_id"],
        }
        for row in kept
    ]


def _pair(answers: Sequence[list[Message]], row: Mapping[str, Any]) -> dict[str, Any]:
    (chosen, rejected), (score_chosen, score_rejected) = answers, row["scores"]
    return {"chosen": chosen, "rejected": rejected, "score_chosen": score_chosen, "score_rejected": score_rejected}


def _ranking(answers: Sequence[list[Message]], row: Mapping[str, Any]) -> dict[str, Any]:
    ranks = row.get("ranks") or list(range(len(answers)))  # version 1 of the table has none, and no ties
    return {"completions": list(answers), "ranks": ranks, "scores": row["scores"]}


def _prompts(prompts: pa.Table) -> dict[str, list[Message]]:
    rows = prompts.select(["prompt_id", "text", "messages"]).to_pylist()
    return {row["prompt_id"]: row["messages"] or [{"role": "user", "content": row["text"]}] for row in rows}


def _answers(candidates: pa.Table) -> dict[tuple[str, int], list[Message]]:
    rows = candidates.select(["prompt_id", "candidate", "text"]).to_pylist()
    return {(row["prompt_id"], row["candidate"]): [{"role": "assistant", "content": row["text"]}] for row in rows}


def _write_parquet(rows: list[dict[str, Any]], kind: str, path: Path) -> None:
    from datasets import Dataset, Features, List, Value
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    messages = List({"role": Value("string"), "content": Value("string")})
    kinds = {"prompt_id": Value("string"), "score_chosen": Value("float64"), "score_rejected": Value("float64")}
    kinds |= {"completions": List(messages), "ranks": List(Value("int32")), "scores": List(Value("float64"))}
    features = Features({name: kinds.get(name, messages) for name in _COLUMNS[kind]})
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # rondo has a display of its own
    try:
        Dataset.from_list(rows, features=features).to_parquet(path)
    finally:
        if shown:
            enable_progress_bar()
