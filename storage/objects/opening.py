"""Which objects a root names: a local directory, memory, or a bucket."""

from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import MemoryStore, from_url

from storage.errors import UnsupportedStoreError
from storage.objects.local import open_local
from storage.objects.objects import Objects, first_line
from storage.objects.patience import client_retries

_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "memory")


def open_objects(root: str | Path, *, create: bool = True) -> Objects:
    """Opens the objects under a local directory, which is created unless it must be there, or under a URI.

    Raises:
        UnsupportedStoreError: the URI's scheme is none that has put-if-absent, or the backend's settings are missing.
        InvalidNameError: the directory's name is not UTF-8.
        StorageAccessError: the directory cannot be created.
    """
    scheme = urlsplit(str(root)).scheme if isinstance(root, str) and "://" in root else ""
    if scheme in ("", "file"):
        return open_local(Path(urlsplit(str(root)).path if scheme else root), create=create)
    if scheme not in _SCHEMES:
        raise UnsupportedStoreError(
            f"no store can be kept under {root}: use a local directory or one of {', '.join(_SCHEMES)}"
        )
    if scheme == "memory":
        kept = MemoryStore()
        return Objects(str(root), lambda seconds: kept)

    @cache  # each has its connections, and its credentials
    def open_client(seconds: float | None) -> obstore.store.ObjectStore:
        return from_url(str(root), retry_config=client_retries(seconds))

    try:
        return Objects(str(root), open_client)
    except (BaseError, ValueError) as error:
        raise UnsupportedStoreError(f"cannot open {root}: {first_line(error)}") from error
