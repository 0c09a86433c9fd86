"""A new object in a bucket: a small one in one request, others in parts. Either can be made again from the start."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import obstore

from storage.objects.patience import Patience

SMALL_BYTES = 8 * 2**20
"""Up to so many are held in memory, about as many as the client holds of each part."""
_CHUNK = 4 * 2**20


class Upload:
    """A file to write to, that a bucket has once it is closed. What is written stays at hand until then.

    Args:
        open_store: the client, which tries again by itself for as many seconds as it is given.
        look: asks for something small, if the backend seems not to answer.
        source: a file that has all that will be written, so that no copy is kept.
    """

    def __init__(
        self,
        open_store: Callable[[float | None], obstore.store.ObjectStore],
        key: str,
        patience: Patience,
        look: Callable[[], object],
        source: Path | None = None,
    ) -> None:
        self._open_store, self._key, self._patience, self._look = open_store, key, patience, look
        kept = source.open("rb") if source else tempfile.SpooledTemporaryFile(SMALL_BYTES, prefix="rondo-")  # noqa: SIM115
        self._kept = cast(BinaryIO, kept)
        self._copies, self._bytes = source is None, 0

    def write(self, data: bytes) -> None:
        """Takes what comes next."""
        self._bytes += len(data)
        if self._copies:
            self._kept.write(data)

    def close(self, store: obstore.store.ObjectStore) -> None:
        """Has the object made; it is durable then."""
        if self._bytes <= SMALL_BYTES:
            self._kept.seek(0)
            data = self._kept.read()
            self._patience.ask(lambda: obstore.put(store, self._key, data, use_multipart=False))
        else:
            self._patience.ask(self._put_parts, patient=True)

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *_error: object) -> None:
        self._kept.close()

    def _put_parts(self) -> None:
        # Their client is as patient with each as the store is: all would be sent again for one that is refused.
        self._kept.seek(0)
        parts = obstore.open_writer(self._open_store(self._patience.seconds), self._key)
        while data := self._kept.read(_CHUNK):
            with self._patience.watching(self._look):
                parts.write(data)
        with self._patience.watching(self._look):
            parts.close()
