"""Prompts: where they come from, which of them are held out, and which a round takes.

A prompt is a text, or a conversation that goes through the tokenizer's chat template. Its id is the hash of
its content: the same prompt has the same id in every run. Datasets of pictures or tool calls are left out.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import DatasetPrompts, FilePrompts, GeneratedPrompts, Prompts
from pipeline.data.corpora import Split, get_corpus
from pipeline.errors import ConfigError, DataError, PromptTooLongError
from pipeline.records import PROMPTS, content_id, to_table

Tokenizer = Any
"""A tokenizer of transformers, whose types are too loose to name here."""

_Row = dict[str, Any]


@dataclass(frozen=True)
class _Prompt:
    content: str | list[dict[str, str]]
    reference_answer: str | None
    source: str

    @property
    def prompt_id(self) -> str:
        return content_id(self.content)


def load_prompts(
    config: Prompts,
    evaluation_count: int,
    seed: int,
    tokenizer: Tokenizer,
    say: Callable[[str], None] = lambda _sentence: None,
) -> pa.Table:
    """All prompts of a run, in the ``PROMPTS`` schema: the train split, then the evaluation split.

    The splits never share a prompt. Generated prompts come from splits of the corpus; of a file or dataset,
    repeated prompts and those beyond ``max_tokens`` are left out (of repeated ones the first stays) and those with the
    ``evaluation_count`` smallest ids are held out, whatever the seed, so that a run forked with another seed trains on
    none of them.

    Args:
        say: takes a sentence for people: how many prompts were too long.

    Raises:
        ConfigError: no such file, dataset, split or column; too few prompts; or conversations without a
            chat template.
        DataError: a prompt that is empty, or neither a text nor a conversation that awaits an answer.
    """
    if isinstance(config, GeneratedPrompts):
        train = _rows(_generated(config, "train", config.train, seed), tokenizer)
        evaluation = _rows(_generated(config, "evaluation", evaluation_count, seed), tokenizer)
    else:
        rows = _rows(_distinct(_read(config)), tokenizer)
        if config.max_tokens is not None:
            rows = _short(rows, config.max_tokens, say)
        train, evaluation = _hold_out(rows, evaluation_count)
    splits = (("train", train), ("evaluation", evaluation))
    return to_table([{**row, "split": split} for split, rows in splits for row in rows], PROMPTS)


def check_lengths(prompts: pa.Table, max_tokens: int, context: int) -> None:
    """Checks that every prompt leaves room for an answer of ``max_tokens`` in ``context`` tokens.

    Raises:
        PromptTooLongError: a prompt does not; names the longest.
    """
    lengths = [len(ids) for ids in prompts["token_ids"].to_pylist()]
    room = context - max_tokens
    too_long = [length for length in lengths if length > room]
    if too_long:
        row = lengths.index(max(too_long))
        raise PromptTooLongError(
            f"prompt {prompts['prompt_id'][row]} has {lengths[row]} tokens and an answer up to {max_tokens}, "
            f"more than the context of {context} ({len(too_long)} of {len(lengths)} prompts are too long): "
            "leave such prompts out (prompts.max_tokens), lower sampling.max_tokens or raise the context"
        )


def round_slice(prompts: pa.Table, round_number: int, prompts_per_round: int, seed: int) -> list[int]:
    """The rows of a round's prompts: a function of its arguments alone. Rounds count from 1.

    The train split is passed over again and again, shuffled anew for each pass, and each round takes up where
    the last one stopped. No prompt comes twice in a pass, nor in a round: what is left at the end of a pass
    and does not fill a round is skipped.

    Raises:
        ConfigError: the train split has fewer prompts than a round takes.
    """
    rows = [row for row, split in enumerate(prompts["split"].to_pylist()) if split == "train"]
    if prompts_per_round > len(rows):
        raise ConfigError(
            f"sampling.prompts_per_round is {prompts_per_round}, but there are {len(rows)} training prompts: "
            "lower it or give more prompts"
        )
    number, position = divmod(round_number - 1, len(rows) // prompts_per_round)
    random.Random(f"{seed}/{number}").shuffle(rows)  # noqa: S311  nothing here is secret
    return rows[position * prompts_per_round :][:prompts_per_round]


def _generated(config: GeneratedPrompts, split: Split, count: int, seed: int) -> list[_Prompt]:
    source = f"generated:{config.corpus}"
    prompts = get_corpus(config.corpus).prompts(split, count, seed)
    return [_Prompt(prompt.text, prompt.reference_answer, source) for prompt in prompts]


def _distinct(prompts: Sequence[_Prompt]) -> list[_Prompt]:
    by_id: dict[str, _Prompt] = {}
    for prompt in prompts:
        by_id.setdefault(prompt.prompt_id, prompt)
    return list(by_id.values())


def _short(rows: Sequence[_Row], most: int, say: Callable[[str], None]) -> list[_Row]:
    kept = [row for row in rows if len(row["token_ids"]) <= most]
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} of {len(rows)} prompts have more than {most} tokens and are left out")
    return kept


def _hold_out(rows: Sequence[_Row], count: int) -> tuple[list[_Row], list[_Row]]:
    if len(rows) <= count:
        raise ConfigError(
            f"evaluation.prompts {count} leaves none of the {len(rows)} different prompts to train on: "
            "lower it or give more prompts"
        )
    by_id = {row["prompt_id"]: row for row in rows}
    held_out = {prompt_id: by_id.pop(prompt_id) for prompt_id in sorted(by_id)[:count]}
    return list(by_id.values()), list(held_out.values())


def _rows(prompts: Sequence[_Prompt], tokenizer: Tokenizer) -> list[_Row]:
    return [
        {
            "prompt_id": prompt.prompt_id,
            "text": text,
            "messages": None if isinstance(prompt.content, str) else prompt.content,
            "token_ids": token_ids,
            "source": prompt.source,
            "reference_answer": prompt.reference_answer,
        }
        for prompt in prompts
        for text, token_ids in [_encode(prompt.content, tokenizer)]
    ]


def _encode(content: str | list[dict[str, str]], tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """The prompt as the policy reads it: at most one beginning of sequence, and no end of sequence."""
    if isinstance(content, str):
        text = content
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not begins).input_ids
        end = tokenizer.eos_token
        if end is not None and ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(end):
            ids = ids[:-1]  # some tokenizers close every text; a prompt must stay open
        return text, ids
    if not tokenizer.chat_template:
        raise ConfigError(
            "the prompts are conversations, but the policy's tokenizer has no chat template: choose a policy "
            "that was tuned for chat, add a chat_template.jinja to its directory, or give prompts as texts"
        )
    text = tokenizer.apply_chat_template(content, add_generation_prompt=True, tokenize=False)
    # The template writes the special tokens itself: adding them again would double the first.
    return text, tokenizer(text, add_special_tokens=False).input_ids


def _read(config: FilePrompts | DatasetPrompts) -> list[_Prompt]:
    columns = [config.column, *([config.reference_column] if config.reference_column else [])]
    if isinstance(config, DatasetPrompts):
        source, rows = f"datasets:{config.name}/{config.split}", _read_dataset(config, columns)
    else:
        source, rows = f"{config.source}:{Path(config.path).name}", _read_file(config, columns)
    if not rows:
        raise ConfigError(f"prompts from {source}: there is no row in it")
    prompts = []
    for number, row in enumerate(rows, start=1):
        answer = row[config.reference_column] if config.reference_column else None
        content = _content(row[config.column], f"row {number} of {source}, column '{config.column}'")
        prompts.append(_Prompt(content, None if answer is None else str(answer), source))
    return prompts


def _content(value: object, place: str) -> str | list[dict[str, str]]:
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise DataError(f"{place} holds {value!r:.80}: give a text or a list of messages, not empty")
    messages = []
    for message in value:
        fields = message if isinstance(message, Mapping) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"{place} holds the message {message!r:.80}: give role and content as texts")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{place} ends with an assistant's message: end it where the answer is to begin")
    return messages


def _read_file(config: FilePrompts, columns: Sequence[str]) -> list[dict[str, Any]]:
    path = Path(config.path)
    if not path.is_file():
        raise ConfigError(f"prompts.path '{config.path}' is not a file: give that of a {config.source} file")
    try:
        if config.source == "parquet":
            present = pq.read_schema(path).names
            _require_columns(columns, present, config.path)
            return list(pq.read_table(path, columns=list(columns)).to_pylist())
        return [_json_row(line, number, columns, config.path) for number, line in _lines(path)]
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts.path '{config.path}' is not readable {config.source}: {error}") from error


def _lines(path: Path) -> list[tuple[int, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at a U+2028 within a text
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _json_row(line: str, number: int, columns: Sequence[str], path: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {number} of '{path}' is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"line {number} of '{path}' holds {line:.80}: give one JSON object a line")
    _require_columns(columns, list(row), f"{path}, line {number}")
    return row


def _require_columns(columns: Sequence[str], present: Sequence[str], place: str) -> None:
    for column in columns:
        if column not in present:
            raise ConfigError(f"'{place}' has no column '{column}': it has {', '.join(sorted(present))}")


def _read_dataset(config: DatasetPrompts, columns: Sequence[str]) -> list[dict[str, Any]]:
    import datasets  # takes seconds to import, and most runs do not need it

    saved = Path(config.name)
    try:
        if (saved / "dataset_dict.json").is_file() or (saved / "state.json").is_file():
            dataset = datasets.load_from_disk(config.name)
            dataset = dataset[config.split] if isinstance(dataset, datasets.DatasetDict) else dataset
        else:
            dataset = datasets.load_dataset(config.name, config.subset, split=config.split)
    except (OSError, ValueError, KeyError) as error:  # what the library raises for names, splits and networks
        raise ConfigError(
            f"the dataset '{config.name}' (subset {config.subset}, split '{config.split}') cannot be read: "
            f"check its name and the network; {error}"
        ) from error
    _require_columns(columns, dataset.column_names, config.name)
    return list(dataset.select_columns(list(columns)))
