"""The text of completions."""

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """The one thing that is asked of a tokenizer here."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ..., **kwargs: Any) -> Any:
        """Decodes token ids to text."""
        ...


def completion_texts(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[str]:
    """Finds what each completion adds to its prompt's text: the two, decoded together, less the prompt decoded.

    Decoded alone, a completion would lose the space that it begins with if the tokenizer is of SentencePiece's kind,
    and a character whose bytes begin in the prompt. Special tokens are left out.
    """
    before: str = tokenizer.decode(list(prompt_ids), skip_special_tokens=True)
    wholes = [tokenizer.decode([*prompt_ids, *token_ids], skip_special_tokens=True) for token_ids in completions]
    return [whole[_common(before, whole) :] for whole in wholes]


def _common(before: str, whole: str) -> int:
    """Counts the characters that both begin with: all of the prompt's, but for one that it breaks off within."""
    if whole.startswith(before):
        return len(before)
    return next((place for place, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
