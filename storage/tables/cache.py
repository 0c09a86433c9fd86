"""Small JSON values that belong to no run, under the digest of what they answer: written once, read by all runs."""

from typing import Any

from storage.errors import CorruptEntryError, MissingObjectError
from storage.log.manifest import seal, unseal
from storage.log.store import Store
from storage.objects import layout


class SharedCache:
    """Values of one kind. Safe for several processes and threads.

    Args:
        kind: name of the directory that holds them, made of ``a-z 0-9 _ -``.
    """

    def __init__(self, store: Store, kind: str) -> None:
        self._objects = store.objects
        self._kind = layout.check_stage(kind)

    def get(self, key: str) -> dict[str, Any] | None:
        """The value under a SHA-256; None where there is none, or one that is damaged, which is removed."""
        path = layout.shared_value_key(self._kind, key)
        try:
            return unseal(self._objects.read(path))
        except MissingObjectError:
            return None
        except CorruptEntryError:
            self._objects.delete([path])
            return None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keeps a value, durably; where there is one already, that one stays.

        Raises:
            InvalidEntryError: it is not JSON.
            StorageFullError, StorageAccessError, BackendError: it could not be written.
        """
        self._objects.create(layout.shared_value_key(self._kind, key), seal(value, f"the value {key}"))
