"""Files that nobody names: what killed workers, cut-off deletions and tombstones have left behind."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from storage.errors import CorruptEntryError
from storage.log.log import Log
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import borrowed, named, parent_of, remove
from storage.objects import layout
from storage.objects.objects import Listed
from storage.tables.checkpoints import shared_files

DEFAULT_GRACE = timedelta(hours=24)
CLOCKS_DIFFER = timedelta(minutes=5)
"""By how much the clocks may differ of several servers that are one store."""

Why = Literal["unnamed", "dropped", "of a deleted run"]

# What a killed process had written, and not named yet, on a local disk.
_STAGED = re.compile(r"#\d+$")


@dataclass(frozen=True)
class Stray:
    """A file that may go, and why."""

    path: str
    bytes: int
    why: Why


def find_strays(store: Store, now: datetime, grace: timedelta = DEFAULT_GRACE) -> list[Stray]:
    """Finds the files that no log entry of any run names and that are older than the grace, and those of tombstones.

    Reports, logs, and what a shared manifest names are left out. So is what a run that is being written has written, or
    may have written for all runs to share, since its writer began: it may yet be named.

    Args:
        now: by the store's own clock, see :meth:`storage.log.store.Store.now`; all other times are by that too.

    Raises:
        CorruptEntryError: a log or manifest is damaged, so that nobody knows what it names.
    """
    # The files are listed before the logs are read: what is named in between counts as named.
    listed = [item for top in (layout.RUNS, layout.SHARED) for item in store.objects.listing(top)]
    # And who writes is asked before that: one that ends in between has named its files by then.
    live = _live(store)
    logs = {run.name: Log(store.objects, run.name) for run in _runs(store)}
    needed, given_up = _needed(logs), {path for log in logs.values() for path in log.dropped}
    shared = shared_files(store, (item.key for item in listed))
    strays = []
    for item in listed:
        log = layout.log_of(item.key)
        writing_since = live.get(log) if log is not None else min(live.values(), default=None)
        why = _why(item, log, known=log is None or log in logs, shared=shared)
        if why is None or item.key in needed:
            continue
        if why == "unnamed" and item.key in given_up:
            strays.append(Stray(item.key, item.bytes, "dropped"))
        elif now - item.modified > grace and not (writing_since and item.modified >= writing_since - CLOCKS_DIFFER):
            strays.append(Stray(item.key, item.bytes, why))
    return strays


def sweep(store: Store, strays: Iterable[Stray]) -> None:
    """Removes the strays, with the directories that this leaves empty."""
    strays = list(strays)
    remove(store.objects, [stray.path for stray in strays])
    for run in sorted(
        {run for stray in strays if stray.why == "of a deleted run" and (run := layout.run_of(stray.path))}
    ):
        store.objects.remove_empty(layout.run_prefix(run))


def _runs(store: Store) -> Iterator[Run]:
    """Yields every run, and behind each its annexes."""
    for run in map(store.run, store.run_names()):
        yield run
        yield from map(run.annex, run.annexes)


def _live(store: Store) -> dict[str, datetime]:
    """Returns the runs and annexes that somebody writes to, and since when, by the store's clock."""
    found = {}
    for run in _runs(store):
        if run.state == "running" and run.session is not None:
            found[run.name] = run.written(run.session)
    return found


def _needed(logs: dict[str, Log]) -> set[str]:
    needed = set()
    for name, log in logs.items():
        needed |= named(log)
        start = parent_of(log.header.meta)
        # A fork that has not begun needs what its parent has up to there.
        if start is not None and start[0] in logs:
            last = borrowed(log, start)
            needed |= set() if last is None else named(logs[start[0]], last)
        elif start is not None:
            raise CorruptEntryError(f"run '{name}' is a fork of '{start[0]}', which is not there: nothing is swept")
    return needed


def _why(item: Listed, log: str | None, *, known: bool, shared: set[str]) -> Why | None:
    """Says why the file could go, if nobody names it; None if it is none of those that sweeping is about."""
    if not (layout.is_file_of_run(item.key) if log is not None else layout.is_shared_file(item.key)):
        return None  # somebody else's
    if not known:
        return "of a deleted run"
    if _STAGED.search(item.key):
        return "unnamed"
    if log is not None:
        return "unnamed" if item.key.startswith(f"{layout.rounds_prefix(log)}/") else None
    return None if item.key in shared else "unnamed"
