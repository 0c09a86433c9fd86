"""A new object in a bucket, piece by piece: a small one in one request, which can be made again, others in parts."""

import io
from collections.abc import Callable

import obstore

from storage.objects.patience import Patience

SMALL_BYTES = 8 * 2**20
"""Up to so many are held in memory, about as many as the client holds of each part."""


class Upload:
    """A file to write to, that a bucket has once it is closed.

    Args:
        open_store: the client, which tries again by itself for as many seconds as it is given.
        look: asks for something small, if the backend seems not to answer.
    """

    def __init__(
        self,
        open_store: Callable[[float | None], obstore.store.ObjectStore],
        key: str,
        patience: Patience,
        look: Callable[[], object],
    ) -> None:
        self._open_store, self._key, self._patience, self._look = open_store, key, patience, look
        self._small = io.BytesIO()
        self._parts: obstore.WritableFile | None = None

    def write(self, data: bytes) -> None:
        """Takes what comes next."""
        if self._parts is None and self._small.tell() + len(data) <= SMALL_BYTES:
            self._small.write(data)
            return
        with self._patience.watching(self._look):
            if self._parts is None:
                # Parts cannot be written again from here: their client itself is as patient as the store is.
                self._parts = obstore.open_writer(self._open_store(self._patience.seconds), self._key)
                self._parts.write(self._small.getvalue())
                self._small = io.BytesIO()
            self._parts.write(data)

    def close(self, store: obstore.store.ObjectStore) -> None:
        """Has the object made; it is durable then."""
        if self._parts is None:
            self._patience.ask(lambda: obstore.put(store, self._key, self._small.getvalue(), use_multipart=False))
            return
        with self._patience.watching(self._look):
            self._parts.close()
