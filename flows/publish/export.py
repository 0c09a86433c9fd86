"""Preferences of a round as a dataset in the forms that other preference trainers read.

Pairs have a ``prompt``, and a ``chosen`` and a ``rejected`` completion; rankings have a ``prompt`` and its
``completions``, best first. In the style of messages each is a list of messages, {role, content}. In that of text, for
models without a chat template, each is a text: the prompt as the policy read it, and what the policy wrote after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.host.new_directory import check_new, new_directory
from flows.publish import Style
from flows.publish.cards import dataset_card
from pipeline.data.conversations import messages_of, other_fields
from pipeline.errors import DataError
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table

PARQUET = "data/train-00000-of-00001.parquet"
"""Where the rows lie in a dataset's directory."""


_PROMPT = {
    Style.messages: "the conversation so far, a list of messages; a plain text is one message of the user",
    Style.text: "the prompt as the policy read it, a text",
}
_ANSWER = {Style.messages: "one message of the assistant", Style.text: "a text that goes on from the prompt"}
_PROMPT_ID = {"prompt_id": "first 16 hexadecimal digits of the SHA-256 of the prompt's content"}


def columns(kind: str, style: Style) -> dict[str, str]:
    """Returns the columns of an export of pairs or rankings, and what each is."""
    answer, reason = _ANSWER[style], "stop (it ended by itself) or length (cut at the limit)"
    if kind == "pair":
        return {
            "prompt": _PROMPT[style],
            "chosen": f"the better answer, {answer}",
            "rejected": f"the worse answer, {answer}",
            "score_chosen": "the judge's score of the better answer",
            "score_rejected": "the judge's score of the worse answer",
            "finish_reason_chosen": f"why the better answer ended: {reason}",
            "finish_reason_rejected": "why the worse answer ended",
            **_PROMPT_ID,
        }
    return {
        "prompt": _PROMPT[style],
        "completions": f"the answers, best first, each {'a list with ' if style is Style.messages else ''}{answer}",
        "ranks": "the place of each, from 0; equal places are ties",
        "scores": "the judge's scores, in the same order",
        "finish_reasons": f"why each ended: {reason}",
        **_PROMPT_ID,
    }


@dataclass(frozen=True)
class _Answer:
    value: str | list[dict[str, str]]
    finish_reason: str


@dataclass(frozen=True)
class _Ranked:
    """A preference: completions best first, with their places and scores."""

    answers: Sequence[_Answer]
    ranks: Sequence[int]
    scores: Sequence[float]

    def of_those_that_ended(self) -> "_Ranked | None":
        """Leaves out the completions that were cut at the limit; None if what is left is no preference."""
        kept = [place for place, answer in enumerate(self.answers) if answer.finish_reason != "length"]
        if len(kept) == len(self.answers):
            return self
        places = {rank: place for place, rank in enumerate(sorted({self.ranks[index] for index in kept}))}
        if len(places) < 2:
            return None
        return _Ranked(
            [self.answers[index] for index in kept],
            [places[self.ranks[index]] for index in kept],
            [self.scores[index] for index in kept],
        )


def export_preferences(
    store: Store,
    run: Run,
    round: int,
    to: Path,
    *,
    style: Style = Style.messages,
    truncated: bool = False,
    say: Callable[[str], None] = lambda _sentence: None,
) -> int:
    """Writes the preferences of a round to a new directory, with a dataset card; returns how many it wrote.

    ``datasets.load_dataset(str(to), split="train")`` reads it. The directory appears as a whole, or not at all.

    Args:
        truncated: keep completions that were cut at the limit, too. Another trainer would take them for complete
            ones and teach the policy to stop there.
        say: takes a sentence for people: what was left out.

    Raises:
        ConfigError: there is something at ``to`` already.
        NotCommittedError: the round has no preferences; round 0 never has any.
        StorageFullError, StorageAccessError: it could not be written; nothing is left behind.
        DataError: every prompt of the round was dropped, or every preference left out; pairs and rankings are mixed; or
            messages hold what this form has no place for.
    """
    check_new(to)
    kind, rows, left_out = _rows(store, run, round, style, truncated)
    if left_out:
        say(f"{left_out} more preferences rest on answers cut at the limit and are left out: --truncated keeps them")
    judge = table(store, run, round, "judgments", ["judge", "judge_version"]).to_pylist()[0]
    card = dataset_card(
        run, round, kind, columns(kind, style), rows, f"{judge['judge']}, version {judge['judge_version']}",
        left_out=left_out, conversational=style is Style.messages,
    )  # fmt: skip
    with new_directory(to) as staged:
        (staged / PARQUET).parent.mkdir(parents=True)
        write_parquet(rows, list(columns(kind, style)), style, staged / PARQUET)
        (staged / "README.md").write_text(card, encoding="utf-8")
    return len(rows)


def _rows(store: Store, run: Run, round: int, style: Style, truncated: bool) -> tuple[str, list[dict[str, Any]], int]:
    """Returns the kind of the preferences, a row for each that is exported, and how many are left out."""
    kept = [row for row in table(store, run, round, "preferences").to_pylist() if row["kind"] != "dropped"]
    kinds = {row["kind"] for row in kept}
    if len(kinds) != 1:
        found = f"both {' and '.join(sorted(kinds))}" if kinds else "no preference, for all its prompts were dropped"
        raise DataError(f"round {round} of run '{run.name}' has {found}: there is nothing to export as one dataset")
    (kind,) = kinds
    asked = {row["prompt_id"] for row in kept}
    prompts = _prompts(table(store, run, 0, "prompts"), style, asked)
    answers = _answers(table(store, run, round, "candidates"), style)
    form = _pair if kind == "pair" else _ranking
    rows = []
    for row in kept:
        ranks = row.get("ranks") or list(range(len(row["candidates"])))  # version 1 of the table has none, and no ties
        preference = _Ranked([answers[row["prompt_id"], index] for index in row["candidates"]], ranks, row["scores"])
        if (exported := preference if truncated else preference.of_those_that_ended()) is not None:
            rows.append({"prompt": prompts[row["prompt_id"]], **form(exported), "prompt_id": row["prompt_id"]})
    if not rows:
        raise DataError(
            f"all {len(kept)} preferences of round {round} of run '{run.name}' rest on answers cut at the limit: raise "
            "sampling.max_tokens, or keep them with --truncated"
        )
    return kind, rows, len(kept) - len(rows)


def _pair(preference: _Ranked) -> dict[str, Any]:
    sides = list(zip(("chosen", "rejected"), preference.answers, preference.scores, strict=True))
    return {
        **{name: answer.value for name, answer, _ in sides},
        **{f"score_{name}": score for name, _, score in sides},
        **{f"finish_reason_{name}": answer.finish_reason for name, answer, _ in sides},
    }


def _ranking(preference: _Ranked) -> dict[str, Any]:
    return {
        "completions": [answer.value for answer in preference.answers],
        "ranks": list(preference.ranks),
        "scores": list(preference.scores),
        "finish_reasons": [answer.finish_reason for answer in preference.answers],
    }


def _prompts(prompts: pa.Table, style: Style, asked: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in prompts.select(["prompt_id", "text", "messages"]).to_pylist():
        if row["prompt_id"] not in asked:
            continue
        if style is Style.text:
            found[row["prompt_id"]] = row["text"]
            continue
        messages = messages_of(row["messages"]) or [{"role": "user", "content": row["text"]}]
        more = next((name for message in messages for name in other_fields(message)), None)
        if more is not None:
            raise DataError(
                f"prompt {row['prompt_id']} has messages with the field '{more}', which the form of messages has no "
                "place for: export it with --style text"
            )
        found[row["prompt_id"]] = messages
    return found


def _answers(candidates: pa.Table, style: Style) -> dict[tuple[str, int], _Answer]:
    def value(text: str) -> str | list[dict[str, str]]:
        return text if style is Style.text else [{"role": "assistant", "content": text}]

    rows = candidates.select(["prompt_id", "candidate", "text", "finish_reason"]).to_pylist()
    return {(row["prompt_id"], row["candidate"]): _Answer(value(row["text"]), row["finish_reason"]) for row in rows}


def write_parquet(rows: list[dict[str, Any]], columns: Sequence[str], style: Style, path: Path) -> None:
    """Writes the rows of an export, with these columns."""
    from datasets import Dataset, Features, List, Value
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    text = Value("string")
    said = text if style is Style.text else List({"role": text, "content": text})
    kinds = {"prompt_id": text, "score_chosen": Value("float64"), "score_rejected": Value("float64")}
    kinds |= {"finish_reason_chosen": text, "finish_reason_rejected": text, "finish_reasons": List(text)}
    kinds |= {"completions": List(said), "ranks": List(Value("int32")), "scores": List(Value("float64"))}
    kinds |= {"policy_chosen": text, "policy_rejected": text, "people": Value("int32")}
    features = Features({name: kinds.get(name, said) for name in columns})
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # rondo has a display of its own
    try:
        Dataset.from_list(rows, features=features).to_parquet(path)
    finally:
        if shown:
            enable_progress_bar()
