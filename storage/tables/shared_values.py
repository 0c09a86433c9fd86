"""Small JSON values that belong to no run, each durable at once, and never swept: a cache, and what people chose.

They lie beside the runs, under the digest of what they answer, so that every run has them. A new one changes no run,
even one that is being written or is finished.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from storage.errors import CorruptEntryError, InvalidEntryError, MissingObjectError
from storage.log.lease import utc_now
from storage.log.manifest import canonical, seal, unseal
from storage.log.store import Store
from storage.objects import layout

LABELS = "labels"
_LONGEST_NAME = 100


class SharedCache:
    """Values of one kind. Safe for several processes and threads.

    Args:
        kind: name of the directory that holds them, made of ``a-z 0-9 _ -``.
    """

    def __init__(self, store: Store, kind: str) -> None:
        self._objects = store.objects
        self._kind = layout.check_stage(kind)

    def get(self, key: str) -> dict[str, Any] | None:
        """Reads the value under a SHA-256; None if there is none. A damaged one is removed, and gives None too."""
        path = layout.shared_value_key(self._kind, key)
        try:
            return unseal(self._objects.read(path))
        except MissingObjectError:
            return None
        except CorruptEntryError:
            self._objects.delete([path])
            return None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keeps a value, durably; if there is one already, that one stays.

        Raises:
            InvalidEntryError: it is not JSON.
            StorageFullError, StorageAccessError, BackendError: it could not be written.
        """
        self._objects.create(layout.shared_value_key(self._kind, key), seal(value, f"the value {key}"))


class Labels:
    """What people chose, when they were asked a question; several can add theirs at the same time.

    A choice lies under the digest of its question, its labeller and its number. Labellers who change their minds add a
    choice: the newest one counts. What was read is kept, as no choice ever changes; threads may share it.
    """

    def __init__(self, store: Store) -> None:
        self._objects = store.objects
        self._read: dict[str, dict[str, Any]] = {}

    def add(self, question: str, labeller: str, choice: dict[str, Any]) -> dict[str, Any]:
        """Keeps a choice, durably, as the newest of this labeller to this question; returns it as it is kept.

        Raises:
            InvalidEntryError: it is not JSON, or the labeller has no name.
            StorageFullError, StorageAccessError, BackendError: it could not be written.
        """
        check_labeller(labeller)
        number = 0
        while True:
            value = {**choice, "question": question, "labeller": labeller, "number": number, "time": utc_now()}
            if self._objects.create(_key(question, labeller, number), seal(value, "the choice")):
                return value
            number += 1

    def history(self, question: str, labeller: str) -> list[dict[str, Any]]:
        """Returns all choices of a labeller to a question, the oldest first, as they are in the store now.

        Raises:
            CorruptEntryError: one is damaged; the message names its file.
        """
        found: list[dict[str, Any]] = []
        while True:
            key = _key(question, labeller, len(found))
            try:
                found.append(_unsealed(key, self._objects.read(key)))
            except MissingObjectError:
                return found

    def newest(self) -> list[dict[str, Any]]:
        """Returns the newest choice of each labeller to each question, by question and labeller.

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
        keys = self._objects.keys(f"{layout.SHARED}/{LABELS}")
        new = [key for key in keys if key not in self._read]
        for key, data in zip(new, self._objects.read_many(new), strict=True):
            self._read[key] = _unsealed(key, data)
        return [self._read[key] for key in keys]


def check_labeller(name: str) -> None:
    """Raises InvalidEntryError if a labeller cannot have this name: it is blank, too long, or no text."""
    if not name.strip() or len(name) > _LONGEST_NAME or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise InvalidEntryError(f"{name!r} is no name of a labeller: give one of 1 to {_LONGEST_NAME} letters")


def _unsealed(key: str, data: bytes) -> dict[str, Any]:
    try:
        return unseal(data)
    except CorruptEntryError as error:
        raise CorruptEntryError(f"the label {key} is damaged: {error}; delete it and label again") from error


def _key(question: str, labeller: str, number: int) -> str:
    digest = hashlib.sha256(canonical([question, labeller, number])).hexdigest()
    return layout.shared_value_key(LABELS, digest)
