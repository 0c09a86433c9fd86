"""A store whose objects count what is read of them."""

from storage.log.store import Store
from storage.objects.objects import Objects


class CountedObjects(Objects):
    """Objects that are read as those of a bucket, in ranges, and counted: reads of whole objects, and all bytes."""

    def __init__(self, store: Store) -> None:
        backend = store.objects._store
        super().__init__("memory://", lambda _seconds: backend)
        self.reads = 0
        self.bytes = 0

    def read(self, key: str) -> bytes:
        self.reads += 1
        data = super().read(key)
        self.bytes += len(data)
        return data

    def open(self, key: str):  # type: ignore[no-untyped-def]
        counted, source = self, super().open(key)
        read = source.read

        def count(size: int = -1) -> bytes:
            data = read(size)
            counted.bytes += len(data)
            return data

        source.read = count  # type: ignore[method-assign]
        return source


def counted(store: Store) -> tuple[Store, CountedObjects]:
    """The same store, counting."""
    objects = CountedObjects(store)
    return Store(store.root, objects), objects
