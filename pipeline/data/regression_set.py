"""What the gate measures a policy on: the prompts of a regression set, and windows of a text, as one table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import GeneratedPrompts, Prompts
from pipeline.data.prompts import check_conversations, encode_prompt, prompt_row
from pipeline.data.sources import Prompt, all_prompts, read_prompts
from pipeline.data.special_tokens import Tokenizer
from pipeline.errors import ConfigError
from pipeline.records import PROMPTS, content_id, to_table

PROMPT_SPLIT, TEXT_SPLIT = "gate", "text"
_LETTERS = 16
"""Letters of the text that are read for each token that is asked for: no tokenizer has longer tokens on average."""


def regression_prompts(config: Prompts, count: int, seed: int) -> list[Prompt]:
    """Reads or generates the prompts of a regression set, at most so many.

    Of a generated corpus they are those that are held out; of a file or dataset those whose contents have the smallest
    hashes, as are a run's held-out prompts.

    Raises:
        ConfigError, DataError: as for `pipeline.data.sources.read_prompts`.
    """
    if isinstance(config, GeneratedPrompts):
        return all_prompts(config.model_copy(update={"train": 1}), count, seed)[1:]
    return sorted(read_prompts(config), key=lambda prompt: prompt.content_id)[:count]


def read_text(path: str, tokens: int) -> str:
    """Reads as much of a text as may be needed for so many tokens.

    Raises:
        ConfigError: there is no such file, or it is no text.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(tokens * _LETTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"gate.text '{path}' cannot be read as a text in UTF-8: {error}") from error


def regression_set(
    prompts: Sequence[Prompt], config: Prompts | None, text: str | None, tokenizer: Tokenizer, tokens: int, window: int
) -> pa.Table:
    """Encodes prompts and windows of a text for a policy, in the ``PROMPTS`` schema, told apart by ``split``.

    Args:
        config: where the prompts come from, for what special tokens in them mean, and the longest that is taken.
        text: None if there is none.
        tokens, window: most tokens of the text, and tokens of one window; what is left at its end is dropped.

    Raises:
        ConfigError, DataError: as for `pipeline.data.prompts.load_prompts`.
    """
    check_conversations(prompts, tokenizer)
    rows = []
    if config is not None:
        read, most = False, None
        if not isinstance(config, GeneratedPrompts):
            read, most = config.read_special_tokens, config.max_tokens
        encoded = [prompt_row(prompt, tokenizer, read_special_tokens=read) for prompt in prompts]
        rows = [row for row in encoded if most is None or len(row["token_ids"]) <= most]
    windows = () if text is None else _windows(text, tokenizer, tokens, window)
    return to_table([*({**row, "split": PROMPT_SPLIT} for row in rows), *windows], PROMPTS)


def _windows(text: str, tokenizer: Tokenizer, tokens: int, window: int) -> Iterator[dict[str, Any]]:
    _, ids = encode_prompt(Prompt(text, None, "gate.text", "gate.text"), tokenizer)
    ids = ids[:tokens]
    for number, start in enumerate(range(0, len(ids) - window + 1, window)):
        part = ids[start : start + window]
        yield {
            "prompt_id": content_id([number, part]),
            "text": tokenizer.decode(part),
            "messages": None,
            "token_ids": part,
            "source": "gate.text",
            "reference_answer": None,
            "split": TEXT_SPLIT,
        }
