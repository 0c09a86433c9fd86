"""A run and the runs that it comes from, the nearest first."""

from collections.abc import Iterator

from storage.errors import CorruptEntryError
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import parent_of


def forebears(store: Store, run: Run) -> Iterator[Run]:
    """Yields a run, what it was forked from, and so on to the first.

    Raises:
        RunNotFoundError: one of them is gone.
        CorruptEntryError: by what their headers say, one of them comes from itself.
    """
    line = [run.name]
    yield run
    while (parent := parent_of(run.header)) is not None:
        if parent[0] in line:
            raise CorruptEntryError(
                f"the header of run '{run.name}' names '{parent[0]}' as its parent, which comes from it "
                f"({' < '.join([*line, parent[0]])}): delete the run, or put its first log entry back as it was"
            )
        run = store.run(parent[0], intact_part=True)
        line.append(run.name)
        yield run
