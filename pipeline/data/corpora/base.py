"""What a generated corpus is, and the rule that keeps its three splits apart."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

from pipeline.data.conversations import Message
from pipeline.errors import ConfigError

Member = TypeVar("Member")
Split = Literal["warm_start", "train", "evaluation"]

# Hundredths of all prompts, as upper bounds of the hash: a tenth is held out for evaluation.
_BOUNDS: tuple[tuple[int, Split], ...] = ((45, "warm_start"), (90, "train"), (100, "evaluation"))


@dataclass(frozen=True)
class CorpusPrompt:
    """A generated prompt, a text or a conversation, with the right answer if the corpus knows one."""

    content: str | list[Message]
    reference_answer: str | None = None


class Corpus(Protocol):
    """A generator of prompts.

    Attributes:
        chat: the prompts are conversations, so that the policy needs a chat template; else they are texts.
        has_reference_answers: each prompt comes with its right answer.
    """

    chat: ClassVar[bool]
    has_reference_answers: ClassVar[bool]

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """Draws ``count`` distinct prompts of one split; the seed decides which, and their order.

        Raises:
            ConfigError: the split has fewer.
        """
        ...


class TextCorpus(Corpus, Protocol):
    """A corpus that also writes answers to its prompts, for a policy that is trained from scratch to learn from."""

    def texts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Draws ``count`` pairs of prompt and answer to learn from; prompts of the warm start's split may repeat."""
        ...


def split_of(key: str) -> Split:
    """Returns the split of a prompt by its key alone, so that no two splits can share one.

    Args:
        key: the prompt's text; or what the prompt is about, so that all prompts about one thing are of one split.
    """
    digest = hashlib.sha256(key.encode()).digest()
    hundredth = int.from_bytes(digest[:8], "big") % 100
    return next(split for bound, split in _BOUNDS if hundredth < bound)


def generator(*names: object) -> random.Random:
    """Makes a generator of random numbers for these names alone, the same on every machine."""
    return random.Random("/".join(map(str, names)))  # noqa: S311  nothing here is secret


def draw(members: Sequence[Member], split: Split, count: int, seed: int) -> list[Member]:
    """Draws ``count`` of the split's members, without repetition.

    Raises:
        ConfigError: the split has fewer.
    """
    if count > len(members):
        raise ConfigError(
            f"{count} prompts were asked for, the {split} split of this corpus has {len(members)}: ask for fewer"
        )
    return generator(split, seed).sample(members, count)
