"""Choices that people make between answers: written once each, durable at once, and of no run.

A choice is about texts, whichever run they come from: so it lies beside the runs, under the digest of its question,
its labeller and its number. A run that is being written, or that is finished, need not be touched for it; a fork that
asks the same question has its answer; and no sweep removes it. A labeller who changes his mind adds a choice: the
newest one counts.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from storage.errors import CorruptEntryError, InvalidEntryError
from storage.log.lease import utc_now
from storage.log.manifest import canonical, seal, unseal
from storage.log.store import Store
from storage.objects import layout

KIND = "labels"
_LONGEST_NAME = 100


class Labels:
    """The choices under a root. Several people can add theirs at the same time."""

    def __init__(self, store: Store) -> None:
        self._objects = store.objects

    def add(self, question: str, labeller: str, choice: dict[str, Any]) -> None:
        """Keeps a choice, durably, as the newest of this labeller to this question.

        Raises:
            InvalidEntryError: it is not JSON, or the labeller has no name.
            StorageFullError, StorageAccessError, BackendError: it could not be written.
        """
        if not labeller.strip() or len(labeller) > _LONGEST_NAME:
            raise InvalidEntryError(f"'{labeller}' is no name of a labeller: give one of 1 to {_LONGEST_NAME} letters")
        number = 0
        while True:
            value = {**choice, "question": question, "labeller": labeller, "number": number, "time": utc_now()}
            if self._objects.create(_key(question, labeller, number), seal(value, "the choice")):
                return
            number += 1

    def newest(self) -> list[dict[str, Any]]:
        """The newest choice of each labeller to each question, by question and labeller.

        Raises:
            CorruptEntryError: one is damaged; the message names its file.
        """
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for value in self._all():
            key = value["question"], value["labeller"]
            if key not in found or found[key]["number"] < value["number"]:
                found[key] = value
        return [found[key] for key in sorted(found)]

    def _all(self) -> Iterable[dict[str, Any]]:
        keys = self._objects.keys(f"{layout.SHARED}/{KIND}")
        for key, data in zip(keys, self._objects.read_many(keys), strict=True):
            try:
                yield unseal(data)
            except CorruptEntryError as error:
                raise CorruptEntryError(f"the label {key} is damaged: {error}; delete it and label again") from error


def _key(question: str, labeller: str, number: int) -> str:
    digest = hashlib.sha256(canonical([question, labeller, number])).hexdigest()
    return layout.shared_value_key(KIND, digest)
