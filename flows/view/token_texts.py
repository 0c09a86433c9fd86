"""The texts of token ids, by the tokenizer of a run's policy and without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from storage.errors import DamagedFileError, DroppedFileError, MissingObjectError
from storage.log.manifest import FileRef, digest_of
from storage.log.run import Run
from storage.log.store import Store

_FILE = "tokenizer.json"
_CONTEXT = 16
"""Tokens before the first one that decide how its text begins."""
_LONGEST_CHARACTER = 4
"""Tokens that one character takes at most, one for each of its bytes; more of them in a row make no character."""


@dataclass(frozen=True)
class TokenText:
    """A token as people read it.

    Attributes:
        text: what it adds to the text; None for bytes that begin a character which a later token completes.
        special: it is a special token.
        name: what the tokenizer itself calls it.
    """

    text: str | None
    special: bool
    name: str


class TokenTexts:
    """Gives the texts of tokens; threads may share it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def of(self, before: Sequence[int], token_ids: Sequence[int]) -> list[TokenText]:
        """Says what each token adds to the text of those before it, such as a prompt's.

        So a token has the space that it begins with, and a character whose bytes are several tokens' is the last one's.
        """
        context = list(before[-_CONTEXT:])
        stream, waiting, found = DecodeStream(skip_special_tokens=False), 0, []
        for token in [*context, *token_ids]:
            name = self._tokenizer.id_to_token(token)
            text = None if name is None else stream.step(self._tokenizer, token)
            found.append(TokenText(text, token in self._special, name or f"no token {token}"))
            waiting = 0 if text is not None else waiting + 1
            if waiting >= _LONGEST_CHARACTER:
                stream, waiting = DecodeStream(skip_special_tokens=False), 0
        return found[len(context) :]


def token_texts(store: Store, run: Run, round: int) -> TokenTexts | None:
    """Loads the tokenizer of a run, from the checkpoint of a round, or of another one if that was removed.

    All policies of a run have the same tokenizer. None if no checkpoint that is left holds one in the form of the
    library ``tokenizers``.

    Raises:
        DamagedFileError: it is not the one that was committed.
    """
    rounds = sorted({entry.round for entry in run.entries(stage="checkpoint")}, key=lambda other: abs(other - round))
    for number in rounds:
        files = [file for file in run.files(number, "checkpoint") if file.name == _FILE]
        if files and (found := _kept(store, run, files[0])) is not None:
            return found
    return None


def _kept(store: Store, run: Run, file: FileRef) -> TokenTexts | None:
    try:
        run.check_kept([file])
        return _load(_Source(store, file))
    except (DroppedFileError, MissingObjectError):
        return None


@dataclass(frozen=True)
class _Source:
    """A file with this content, wherever it lies: what is loaded is kept under the digest of its bytes."""

    store: Store
    file: FileRef

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and other.file.sha256 == self.file.sha256

    def __hash__(self) -> int:
        return hash(self.file.sha256)


@lru_cache(maxsize=4)
def _load(source: _Source) -> TokenTexts:
    data = source.store.objects.read(source.file.path)
    if digest_of(data) != source.file.sha256:
        raise DamagedFileError(f"{source.file.path} is damaged: its bytes are not those that were committed")
    return TokenTexts(Tokenizer.from_str(data.decode()))
