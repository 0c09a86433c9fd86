"""Whether a root can hold a store: it is written to, and must refuse to overwrite."""

import uuid

from storage.errors import UnsupportedStoreError
from storage.log.run import put_once
from storage.log.store import Store
from storage.objects import layout


def check_root(store: Store) -> None:
    """Create an object, read it, try to create it again, and remove it.

    Raises:
        UnsupportedStoreError: the backend overwrites what it is asked to create, or does not keep it.
        Others of the store's errors, where it cannot be written or reached.
    """
    key = f"{layout.new_shared_directory_key('probe', uuid.uuid4().hex)}/probe"
    try:
        if not put_once(store.objects, key, b"probe") or store.objects.read(key) != b"probe":
            raise UnsupportedStoreError(f"{store.root} does not keep what is written to it: keep the store elsewhere")
        if store.objects.create(key, b"another"):
            raise UnsupportedStoreError(
                f"{store.root} overwrites objects that it is asked to create: keep the store elsewhere"
            )
    finally:
        store.objects.delete([key])
        store.objects.remove_empty(key.rpartition("/")[0])
