"""The prompts of a recipe's source, before any policy: texts and conversations with their reference answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.config import DatasetPrompts, FilePrompts, GeneratedPrompts, Prompts
from pipeline.data.conversations import Message, prompt_content
from pipeline.data.corpora import Split, get_corpus
from pipeline.data.reference_answers import reference_answer
from pipeline.data.rows import read_rows
from pipeline.errors import ConfigError, DataError
from pipeline.records import content_id


@dataclass(frozen=True)
class Prompt:
    """A prompt as its source has it.

    Attributes:
        place: where it stands, for messages.
        template_kwargs: what the policy's chat template is told beside a conversation; a text goes through none.
    """

    content: str | list[Message]
    reference_answer: str | None
    source: str
    place: str
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def prompt_id(self) -> str:
        """Hashes the content, all fields of its messages included, and what the chat template is told beside them."""
        if isinstance(self.content, str) or not self.template_kwargs:
            return self.content_id
        return content_id({"messages": self.content, "chat_template_kwargs": dict(self.template_kwargs)})

    @cached_property
    def content_id(self) -> str:
        """Hashes the content alone: the same whatever the chat template is told."""
        return content_id(self.content)


def all_prompts(config: Prompts, evaluation_count: int, seed: int) -> list[Prompt]:
    """Generates or reads the prompts of a run; of generated ones the last ``evaluation_count`` are held out.

    Raises:
        ConfigError, DataError: as for `read_prompts`; or the corpus has fewer in one of its splits.
    """
    if not isinstance(config, GeneratedPrompts):
        return read_prompts(config)
    return [*_generate(config, "train", config.train, seed), *_generate(config, "evaluation", evaluation_count, seed)]


def read_prompts(config: FilePrompts | DatasetPrompts) -> list[Prompt]:
    """Reads the different prompts of a file or dataset; of repeated ones the first stays.

    Raises:
        ConfigError: there is no such file, dataset, split or column, it cannot be read, or it has no rows; or the
            recipe sets switches of a chat template, and no prompt is a conversation.
        DataError: a row whose prompt or reference answer cannot be used; names its place.
    """
    found = read_rows(config)
    by_id: dict[str, Prompt] = {}
    for row in found.rows:
        place = found.place(row, config.column)
        content = prompt_content(row.prompt, place, padded=found.padded)
        column = config.reference_column
        answer = reference_answer(row.answer, found.place(row, column), column) if column else None
        prompt = Prompt(content, answer, found.source, place, config.chat_template_kwargs)
        by_id.setdefault(prompt.prompt_id, prompt)
    _check_switches_are_used(config.chat_template_kwargs, list(by_id.values()))
    return list(by_id.values())


def _generate(config: GeneratedPrompts, split: Split, count: int, seed: int) -> list[Prompt]:
    source = f"generated:{config.corpus}"
    prompts = get_corpus(config.corpus).prompts(split, count, seed)
    made = [
        Prompt(
            prompt.content, prompt.reference_answer, source, f"prompt {number} of {source}", config.chat_template_kwargs
        )
        for number, prompt in enumerate(prompts, start=1)
    ]
    _check_switches_are_used(config.chat_template_kwargs, made)
    return made


def _check_switches_are_used(template_kwargs: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError if switches of a chat template are set, and no prompt is a conversation."""
    if template_kwargs and all(isinstance(prompt.content, str) for prompt in prompts):
        raise ConfigError(
            f"prompts.chat_template_kwargs sets {', '.join(template_kwargs)}, but the prompts are texts, which go "
            "through no chat template: leave it out, or give conversations"
        )


def check_count(total: int, held_out: int, prompts_per_round: int = 1) -> None:
    """Checks that there are prompts to train on, as many as a round takes, beside those that are held out.

    Raises:
        ConfigError: there are too few; says how many there are, and how many of them are held out.
    """
    train = total - held_out
    if train <= 0:
        raise ConfigError(
            f"evaluation.prompts {held_out} leaves none of the {total} different prompts to train on: "
            "lower it or give more prompts"
        )
    if prompts_per_round > train:
        raise ConfigError(
            f"sampling.prompts_per_round is {prompts_per_round}, but there are {train} training prompts, for of "
            f"{total} different ones {held_out} are held out: lower it or evaluation.prompts, or give more prompts"
        )


def check_reference_answers(prompts: Sequence[Prompt], judge: str) -> None:
    """Checks that all prompts have the answer that a judge compares with.

    Raises:
        DataError: some have none; names the first.
    """
    if without := [prompt.place for prompt in prompts if prompt.reference_answer is None]:
        raise DataError(
            f"{without[0]} has no reference answer (null or NaN), nor have {len(without) - 1} others of "
            f"{len(prompts)}, and the judge {judge} compares with it: leave these rows out, or choose another judge"
        )
