"""Damage done to a store on purpose: to single objects for a while, and to the records of a whole log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storage.log.manifest import Entry, decode_entry, digest_of, encode_entry
from storage.log.run import Run
from storage.log.store import Store
from storage.objects import layout

DAMAGES = ("flip", "truncate", "delete", "swap")


@contextmanager
def damaged(store: Store, path: str, how: str, other: str = "") -> Iterator[None]:
    """One object damaged, for the time of the block."""
    data = store.objects.read(path)
    there = {path: data} | ({other: store.objects.read(other)} if how == "swap" else {})
    middle = len(data) // 2
    new = {
        "flip": {path: data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]},
        "truncate": {path: data[:-1]},
        "delete": {},
        "swap": {path: there.get(other, b""), other: data},
    }[how]
    try:
        write(store, there, new)
        yield
    finally:
        write(store, there, there)


def write(store: Store, remove: dict[str, bytes], new: dict[str, bytes]) -> None:
    store.objects.delete(list(remove))
    for path, data in new.items():
        assert store.objects.create(path, data)


def paths(store: Store, stage: str, number: int, run: str = "kept") -> dict[str, str]:
    """The files of a stage: by their names in a directory, or as ``table``."""
    return {file.name or "table": file.path for file in store.run(run).files(number, stage)}


def decode(store: Store, key: str) -> Entry:
    return decode_entry(store.objects.read(key))


def rewrite(store: Store, run: Run, change: Callable[[Entry], Entry]) -> None:
    """The same log with changed entries, each vouched for by the next."""
    parent = None
    for key in store.objects.keys(layout.log_prefix(run.name)):
        entry = change(Entry(**{**vars(decode(store, key)), "parent": parent}))
        data = encode_entry(entry)
        write(store, {key: b""}, {key: data})
        parent = digest_of(data)
    store.objects.delete(store.objects.keys(layout.snapshots_prefix(run.name)))
    with store.run(run.name).writer():
        pass
