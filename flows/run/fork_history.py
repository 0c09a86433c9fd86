"""A fork's past: the rounds of its parent, by reference."""

from collections.abc import Mapping, Sequence

from storage.log.manifest import Entry, FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer


def import_parent_rounds(store: Store, run: Run, writer: Writer) -> None:
    """Names the parent's files in the fork's own log, up to the round that it starts from; nothing is copied.

    What the parent has dropped, the fork drops too. A fork that was killed meanwhile goes on where it stopped, like any
    other step.
    """
    parent = run.header.get("parent")
    if parent is None or len(run.finished) > parent["round"]:
        return
    source = store.run(parent["run"], intact_part=True)
    dropped = source.dropped
    for number in range(len(run.finished), parent["round"] + 1):
        for entry in source.entries(round=number):
            assert entry.key is not None
            writer.commit(entry.key, entry.files, entry.meta)
            for reason, files in _given_up(entry.files, dropped).items():
                writer.drop(files, reason)
        writer.finish_round(number, source.round_entry(number).meta)


def _given_up(files: Sequence[FileRef], dropped: Mapping[str, Entry]) -> dict[str, list[FileRef]]:
    """Finds the files that the parent has dropped, by the reason."""
    found: dict[str, list[FileRef]] = {}
    for file in files:
        if file.path in dropped:
            found.setdefault(dropped[file.path].meta["reason"], []).append(file)
    return found
