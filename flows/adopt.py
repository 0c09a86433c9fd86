"""A fork's past: the rounds of its parent, by reference."""

from storage.run import Run, Writer
from storage.store import Store


def adopt_rounds(store: Store, run: Run, writer: Writer) -> None:
    """Names the parent's files in the fork's own log, up to the round that it starts from; nothing is copied.

    A fork that was killed in the middle of it goes on where it stopped, like any other step.
    """
    parent = run.header.get("parent")
    if parent is None:
        return
    source = store.run(parent["run"])
    finished = source.rounds()
    for number in range(len(run.rounds()), parent["round"] + 1):
        for entry in source.entries(round=number):
            assert entry.key is not None
            writer.commit(entry.key, entry.files, entry.meta)
        writer.finish_round(number, finished[number].meta)
