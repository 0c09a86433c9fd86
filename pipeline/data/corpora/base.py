"""What a generated corpus is, and the rule that keeps its three splits apart."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.errors import ConfigError

Split = Literal["warm_start", "train", "evaluation"]

# Hundredths of all prompts, as upper bounds of the hash: a tenth is held out for evaluation.
_BOUNDS: tuple[tuple[int, Split], ...] = ((45, "warm_start"), (90, "train"), (100, "evaluation"))


@dataclass(frozen=True)
class CorpusPrompt:
    """A generated prompt, with the right answer where the corpus knows one."""

    text: str
    reference_answer: str | None = None


class Corpus(Protocol):
    """A generator of prompts and of texts to learn from."""

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """``count`` distinct prompts of one split, drawn and ordered by the seed.

        Raises:
            ConfigError: the split has fewer.
        """
        ...

    def texts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """``count`` pairs of prompt and answer to learn from; prompts of the warm start's split may repeat."""
        ...


def split_of(prompt: str) -> Split:
    """The split of a prompt: a function of its text alone, so that no two splits can share one."""
    digest = hashlib.sha256(prompt.encode()).digest()
    hundredth = int.from_bytes(digest[:8], "big") % 100
    return next(split for bound, split in _BOUNDS if hundredth < bound)


def generator(*names: object) -> random.Random:
    """A generator of random numbers of its own for these names, the same on every machine."""
    return random.Random("/".join(map(str, names)))  # noqa: S311  nothing here is secret


def draw(members: Sequence[str], split: Split, count: int, seed: int) -> list[str]:
    """``count`` of the split's members, without repetition.

    Raises:
        ConfigError: the split has fewer.
    """
    if count > len(members):
        raise ConfigError(
            f"{count} prompts were asked for, the {split} split of this corpus has {len(members)}: ask for fewer"
        )
    return generator(split, seed).sample(members, count)
