"""Encodes text so that special tokens which a user spelled in it stay ordinary text.

A tokenizer takes ``<|im_end|>`` for the control token wherever it stands. Here a twin of the tokenizer knows its
special tokens by names that nobody can spell; those of the chat template are renamed to them, and those of the content
are not. Everything else about the twin is the same, so that it gives the same ids. `Marked` tells the two apart.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer as Backend

Tokenizer = Any
"""A tokenizer of transformers, whose types are too loose to name here."""

_PRIVATE = range(0xF0000, 0xFFFF0)
"""Characters that no text needs: a private area of Unicode."""


@dataclass(frozen=True)
class Twin:
    """A tokenizer whose special tokens have secret names.

    Attributes:
        backend: does the work.
        names: secret name of each special token by its spelling.
    """

    backend: Backend
    names: Mapping[str, str]


class Marked:
    """Marks for the special tokens that are spelled in some texts, to be told from those that a template adds.

    Args:
        tokenizer: whose special tokens.
        texts: the texts; empty marks if none of them spells one.
    """

    def __init__(self, tokenizer: Tokenizer, *texts: str) -> None:
        self._tokenizer = tokenizer
        everything = "\0".join(texts)
        self.spelled = [token for token in special_tokens(tokenizer) if token in everything]
        free = (chr(code) for code in _PRIVATE if chr(code) not in everything)
        self._marks = dict(zip(self.spelled, free, strict=False))

    @property
    def apart(self) -> bool:
        """Says whether spelled tokens are encoded as text; false if the texts spell none."""
        return bool(self._marks) and keeps_apart(self._tokenizer)

    def mark(self, value: Any) -> Any:
        """Puts a mark in place of each special token that is spelled in a value, at any depth."""
        if isinstance(value, str):
            return _replace(value, self._marks)
        if isinstance(value, Mapping):
            return {self.mark(name): self.mark(field) for name, field in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list) else value

    def unmark(self, text: str) -> str:
        """Puts the special tokens back in place of their marks."""
        return _replace(text, {mark: token for token, mark in self._marks.items()})

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encodes a marked text: what was marked becomes ordinary text, all other special tokens stay themselves."""
        twin = _twin(self._tokenizer) if self._marks else None
        if twin is None:  # in nearly all texts nothing is spelled
            return list(self._tokenizer(self.unmark(text), add_special_tokens=add_special_tokens).input_ids)
        renamed = self.unmark(_replace(text, twin.names))
        return list(twin.backend.encode(renamed, add_special_tokens=add_special_tokens).ids)


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Lists the spellings of a tokenizer's special tokens; added tokens that are not special are ordinary text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    named = getattr(tokenizer, "all_special_tokens", [])
    found = {*named, *(token.content for token in added if token.special)}
    return sorted(token for token in found if token.strip())


def keeps_apart(tokenizer: Tokenizer) -> bool:
    """Says whether special tokens that are spelled in content can be encoded as ordinary text."""
    return _twin(tokenizer) is not None


def strings(value: Any) -> list[str]:
    """Lists all texts of a value, at any depth, names of fields among them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []


@lru_cache(maxsize=4)
def _twin(tokenizer: Tokenizer) -> Twin | None:
    """Makes the twin; None if the tokenizer is not of the tokenizers library, or cannot do without its names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    code = secrets.token_hex(16)  # text that spells a secret name would be a control token again
    names = {token: f"\U000ffffc{code}{place}\U000ffffd" for place, token in enumerate(special_tokens(tokenizer))}
    data = json.loads(backend.to_str())
    data |= {"truncation": None, "padding": None}
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    try:
        return Twin(Backend.from_str(json.dumps(data)), names)
    except Exception:  # all that the library raises, as for merges that make a special token
        return None


def _replace(text: str, replacements: Mapping[str, str]) -> str:
    if not replacements:
        return text
    longest_first = sorted(replacements, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: replacements[found[0]], text)
