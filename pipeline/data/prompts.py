"""Prompts as a run's table: encoded for its policy, which of them are held out, and which a round takes.

A prompt is a text, or a conversation that goes through the tokenizer's chat template. Its id is the hash of its content
and of the template's switches: the same prompt has the same id in every run. Pictures and lists of tools are left out.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.config import GeneratedPrompts, Prompts
from pipeline.data.chat_template import check_switches, check_used, encode_conversation
from pipeline.data.conversations import stored_messages
from pipeline.data.sources import Prompt, all_prompts, check_count
from pipeline.data.special_tokens import Marked, Tokenizer, keeps_apart, strings
from pipeline.errors import ConfigError, DataError, PromptTooLongError
from pipeline.records import PROMPTS, to_table

_Row = dict[str, Any]
_Say = Callable[[str], None]


def load_prompts(
    config: Prompts,
    evaluation_count: int,
    seed: int,
    tokenizer: Tokenizer,
    say: _Say = lambda _sentence: None,
    prompts: Sequence[Prompt] | None = None,
) -> pa.Table:
    """Loads all prompts of a run, in the ``PROMPTS`` schema: the train split, then the evaluation split.

    The splits never share a prompt. Generated prompts come from splits of the corpus. Of a file or dataset, repeated
    prompts and those beyond ``max_tokens`` are left out; of repeated ones the first stays. Those whose contents have
    the ``evaluation_count`` smallest hashes are held out, whatever the seed and the chat template's switches, so that a
    run with others trains on none of them.

    Args:
        say: takes sentences for people: how many prompts were too long, and how many spell special tokens.
        prompts: what `all_prompts` gave of these very arguments, if it was asked before.

    Raises:
        ConfigError: no such file, dataset, split or column; too few prompts; conversations without a chat template; or
            switches that the template does not have.
        DataError: a prompt that is empty, neither a text nor a conversation that awaits an answer, or that the chat
            template does not take as a whole.
    """
    prompts = all_prompts(config, evaluation_count, seed) if prompts is None else prompts
    check_conversations(prompts, tokenizer)
    if isinstance(config, GeneratedPrompts):
        rows = [prompt_row(prompt, tokenizer) for prompt in prompts]
        train, evaluation = rows[: config.train], rows[config.train :]
    else:
        rows = [prompt_row(prompt, tokenizer, read_special_tokens=config.read_special_tokens) for prompt in prompts]
        _say_special_tokens(prompts, tokenizer, config.read_special_tokens, say)
        if config.max_tokens is not None:
            rows = _short(rows, config.max_tokens, say)
        contents = {prompt.prompt_id: prompt.content_id for prompt in prompts}
        train, evaluation = _hold_out(rows, evaluation_count, contents)
    splits = (("train", train), ("evaluation", evaluation))
    return to_table([{**row, "split": split} for split, rows in splits for row in rows], PROMPTS)


def check_conversations(prompts: Sequence[Prompt], tokenizer: Tokenizer | None) -> None:
    """Checks that conversations can be given to a policy; None stands for a policy that is to be warm-started.

    Raises:
        ConfigError: some prompts are conversations, and its tokenizer has no chat template, or one without the switches
            that the recipe sets.
    """
    conversation = next((prompt for prompt in prompts if not isinstance(prompt.content, str)), None)
    if conversation is None:
        return
    if tokenizer is None or not tokenizer.chat_template:
        raise ConfigError(
            "the prompts are conversations, but the policy's tokenizer has no chat template: choose a policy "
            "that was tuned for chat, add a chat_template.jinja to its directory, or give prompts as texts"
        )
    check_switches(tokenizer, conversation.template_kwargs, of="the policy")


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
    """Returns the rows of a round's prompts: a function of its arguments alone. Rounds count from 1.

    The train split is passed over again and again, shuffled anew for each pass, and each round takes up where
    the last one stopped. No prompt comes twice in a pass, nor in a round: what is left at the end of a pass
    and does not fill a round is skipped.

    Raises:
        ConfigError: the train split has fewer prompts than a round takes.
    """
    rows = [row for row, split in enumerate(prompts["split"].to_pylist()) if split == "train"]
    check_count(prompts.num_rows, prompts.num_rows - len(rows), prompts_per_round)
    number, position = divmod(round_number - 1, len(rows) // prompts_per_round)
    random.Random(f"{seed}/{number}").shuffle(rows)  # noqa: S311  nothing here is secret
    return rows[position * prompts_per_round :][:prompts_per_round]


def _short(rows: Sequence[_Row], most: int, say: _Say) -> list[_Row]:
    kept = [row for row in rows if len(row["token_ids"]) <= most]
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} of {len(rows)} prompts have more than {most} tokens and are left out")
    return kept


def _hold_out(rows: Sequence[_Row], count: int, contents: Mapping[str, str]) -> tuple[list[_Row], list[_Row]]:
    """Splits rows into those to train on and those held out, by the hashes of their contents, given by prompt id."""
    check_count(len(rows), count)
    by_id = {row["prompt_id"]: row for row in rows}
    first = sorted(by_id, key=contents.__getitem__)[:count]
    held_out = {prompt_id: by_id.pop(prompt_id) for prompt_id in first}
    return list(by_id.values()), list(held_out.values())


def prompt_row(prompt: Prompt, tokenizer: Tokenizer, *, read_special_tokens: bool = False) -> _Row:
    """Returns a prompt's row of the ``PROMPTS`` table, but for its split."""
    text, token_ids = encode_prompt(prompt, tokenizer, read_special_tokens=read_special_tokens)
    return {
        "prompt_id": prompt.prompt_id,
        "text": text,
        "messages": None if isinstance(prompt.content, str) else stored_messages(prompt.content),
        "token_ids": token_ids,
        "source": prompt.source,
        "reference_answer": prompt.reference_answer,
    }


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, *, read_special_tokens: bool = False) -> tuple[str, list[int]]:
    """Encodes the prompt as the policy reads it: at most one beginning of sequence, and no end of sequence.

    Raises:
        DataError: the chat template does not take the conversation as a whole.
    """
    content = prompt.content
    if isinstance(content, str):
        return content, _encode_text(content, tokenizer, read_special_tokens)
    try:
        text, ids = encode_conversation(
            tokenizer, content, of="the policy", add_generation_prompt=True, read_special_tokens=read_special_tokens,
            template_kwargs=prompt.template_kwargs,
        )  # fmt: skip
        check_used(tokenizer, content, text, of="the policy", template_kwargs=prompt.template_kwargs)
    except DataError as error:
        raise DataError(f"{prompt.place}: {error}") from error
    return text, ids


def _encode_text(text: str, tokenizer: Tokenizer, read_special_tokens: bool) -> list[int]:
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    begin = tokenizer.bos_token if begins else ""
    body = text.removeprefix(begin)
    marks = Marked(tokenizer, *([] if read_special_tokens else [body]))
    ids = marks.encode(begin + marks.mark(body), add_special_tokens=not begins)
    end = tokenizer.eos_token
    spelled = text.endswith(end) and not marks.apart if end is not None else True
    if ids[-1:] == [tokenizer.eos_token_id] and not spelled:
        ids = ids[:-1]  # some tokenizers close every text; a prompt must stay open
    return ids


def _say_special_tokens(prompts: Sequence[Prompt], tokenizer: Tokenizer, read: bool, say: _Say) -> None:
    spelling = [found for prompt in prompts if (found := Marked(tokenizer, *strings(prompt.content)).spelled)]
    if not spelling:
        return
    what = f"{len(spelling)} of {len(prompts)} prompts spell special tokens, such as {spelling[0][0]!r}"
    if read:
        say(f"{what}: they are read as control tokens, as prompts.read_special_tokens says")
    elif keeps_apart(tokenizer):
        say(f"{what}: they are read as ordinary text (control tokens of them makes prompts.read_special_tokens)")
    else:
        say(f"{what}: they are read as control tokens, for this tokenizer cannot tell the two apart")
