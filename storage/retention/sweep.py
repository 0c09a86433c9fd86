"""Files that nobody names: what killed workers, cut-off deletions and tombstones have left behind."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from storage.errors import CorruptEntryError
from storage.log.log import Log
from storage.log.store import Store
from storage.log.tombstones import has_begun, named, parent_of, remove
from storage.objects import layout
from storage.objects.objects import Listed
from storage.tables.checkpoints import shared_files

DEFAULT_GRACE = timedelta(hours=24)
LIVE_GRACE = timedelta(hours=1)
"""However short a grace is asked for, a run that is being written keeps what it wrote in the last hour, and what it may
have written for all runs to share.
"""

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
    """The files that no log entry of any run names and that are older than the grace, and those of tombstones.

    Reports, logs, and what a shared manifest names are none.

    Args:
        now: with the time zone; compared with the times that the backend gives.

    Raises:
        CorruptEntryError: a log or manifest is damaged, so that nobody knows what it names.
    """
    # The files are listed before the logs are read: what is named in between counts as named.
    listed = [item for top in (layout.RUNS, layout.SHARED) for item in store.objects.listing(top)]
    logs = {name: Log(store.objects, name) for name in store.run_names()}
    needed, given_up = _needed(logs), {path for log in logs.values() for path in log.dropped}
    live = {name for name in logs if store.run(name).state == "running"}
    shared = shared_files(store, (item.key for item in listed))
    strays = []
    for item in listed:
        run = layout.run_of(item.key)
        age = now - item.modified
        why = _why(item, run, known=run is None or run in logs, shared=shared)
        if why is None or item.key in needed:
            continue
        if why == "unnamed" and item.key in given_up:
            strays.append(Stray(item.key, item.bytes, "dropped"))
        elif age > max(grace, LIVE_GRACE if run in live or (run is None and live) else grace):
            strays.append(Stray(item.key, item.bytes, why))
    return strays


def sweep(store: Store, strays: Iterable[Stray]) -> None:
    """Remove them, with the directories that this leaves empty."""
    strays = list(strays)
    remove(store.objects, [stray.path for stray in strays])
    for run in sorted(
        {run for stray in strays if stray.why == "of a deleted run" and (run := layout.run_of(stray.path))}
    ):
        store.objects.remove_empty(layout.run_prefix(run))


def _needed(logs: dict[str, Log]) -> set[str]:
    needed = set()
    for name, log in logs.items():
        needed |= named(log)
        start = parent_of(log.header.meta)
        # A fork that has not begun needs what its parent has up to there.
        if start is not None and start[0] in logs:
            needed |= set() if has_begun(log, start[1]) else named(logs[start[0]], start[1])
        elif start is not None:
            raise CorruptEntryError(f"run '{name}' is a fork of '{start[0]}', which is not there: nothing is swept")
    return needed


def _why(item: Listed, run: str | None, *, known: bool, shared: set[str]) -> Why | None:
    """Why the file could go, if nobody names it; None if it is none of those that sweeping is about."""
    if not (layout.is_file_of_run(item.key) if run is not None else layout.is_shared_file(item.key)):
        return None  # somebody else's
    if not known:
        return "of a deleted run"
    if _STAGED.search(item.key):
        return "unnamed"
    if run is not None:
        return "unnamed" if item.key.startswith(f"{layout.rounds_prefix(run)}/") else None
    return None if item.key in shared else "unnamed"
