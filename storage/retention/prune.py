"""What may be removed of a run: files that none of its rounds needs any more, or the run as a whole.

The caller, who knows what rounds read, says which commits a run can do without. Whatever it says, a file stays if
another commit of the run names it, or a fork.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from storage.errors import CorruptEntryError, RunBusyError, RunHasForksError
from storage.log.manifest import Entry, FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import forks, needed_by_forks, parents
from storage.objects import layout

PRUNED = "pruned"
_PURPOSE = "purpose"
_BEING = {"prune": "pruned", "delete": "deleted"}


@dataclass(frozen=True)
class Removal:
    """What pruning takes of a stage of a round.

    Attributes:
        files: what the run drops.
        freed: bytes that go; files that lie in another run stay, and count as 0.
    """

    round: int
    stage: str
    files: tuple[FileRef, ...]
    freed: int


@dataclass(frozen=True)
class Pruning:
    """What pruning would take.

    Attributes:
        removals: by round.
        for_forks: rounds that would lose files, if forks did not name them.
        forks: the forks of the run, and theirs.
    """

    removals: tuple[Removal, ...]
    for_forks: tuple[int, ...]
    forks: tuple[str, ...]


def rounds_with(run: Run, stage: str) -> list[int]:
    """Lists the finished rounds whose files of that stage are there."""
    dropped = run.dropped
    return [
        number
        for number in run.finished
        if (files := run.files(number, stage)) and not any(file.path in dropped for file in files)
    ]


def plan_pruning(store: Store, run: Run, unneeded: Iterable[Entry]) -> Pruning:
    """Says what would go if the run could do without the files of these commits.

    Raises:
        CorruptEntryError: the log of a fork is damaged, so that nobody knows what it names.
    """
    entries = sorted(unneeded, key=lambda entry: (entry.round, entry.number))
    numbers = {entry.number for entry in entries}
    kept = {file.path for entry in run.entries() if entry.number not in numbers for file in entry.files}
    needed, taken = needed_by_forks(store.objects, run.name), set(run.dropped)
    removals, for_forks = [], set()
    for entry in entries:
        paths = {file.path for file in entry.files}
        files = tuple(file for file in entry.files if file.path not in taken)
        if not files or entry.key is None or paths & kept:
            continue
        if paths & needed:
            for_forks.add(entry.round)
            continue
        freed = sum(file.bytes for file in files if layout.run_of(file.path) == run.name)
        removals.append(Removal(entry.round, entry.key.stage, files, freed))
        taken |= paths
    return Pruning(tuple(removals), tuple(sorted(for_forks)), tuple(forks(parents(store.objects), run.name)))


def prune(store: Store, run: Run, unneeded: Callable[[Run], Iterable[Entry]]) -> Pruning:
    """Drops and removes what :func:`plan_pruning` says; returns it.

    Args:
        unneeded: lists the commits that the run can do without; called once no other process can write to it.

    Raises:
        RunBusyError: another process writes to the run.
    """
    with run.writer(meta={_PURPOSE: "prune"}) as writer:
        planned = plan_pruning(store, run, unneeded(run))
        writer.drop([file for removal in planned.removals for file in removal.files], PRUNED)
    return planned


def check_deletable(store: Store, name: str) -> None:
    """Raises at once what :func:`delete_run` would raise, except for another process that writes.

    Raises:
        RunHasForksError: other runs name its files.
        RunNotFoundError: there is no such run, nor anything left of one.
    """
    layout.check_run_name(name)
    if name in store.run_names():
        _check_no_forks(store, name)
    elif name not in store.objects.children(layout.RUNS):
        raise store.no_run(name)


def delete_run(store: Store, name: str, *, take_over: bool = False) -> None:
    """Removes a run with all that is its own, or what an interrupted deletion has left of one.

    The first log entry goes first: from then on there is no such run.

    Raises:
        RunHasForksError: other runs name its files.
        RunBusyError: another process writes to it, or to an annex of it.
        RunNotFoundError: there is no such run, nor anything left of one.
    """
    check_deletable(store, name)
    prefix = layout.run_prefix(name)
    if name in store.run_names():
        try:
            run = store.run(name)
        except CorruptEntryError:  # nobody can write to it, and nobody can fork it
            store.objects.delete([layout.entry_key(name, 0)])
        else:
            with ExitStack() as held:
                logs = (run, *map(run.annex, run.annexes))
                writers = [held.enter_context(log.writer(take_over, {_PURPOSE: "delete"})) for log in logs]
                _check_no_forks(store, name)  # again: one may have been made before this session was seen
                for writer in writers:
                    writer.leave()
                store.objects.delete([layout.entry_key(name, 0)])
    store.objects.delete([item.key for item in store.objects.listing(prefix)])
    store.objects.remove_empty(prefix)


def create_fork(
    store: Store, parent: Run, round: int, name: str, header: dict[str, Any], needed: Sequence[FileRef] = ()
) -> Run:
    """Creates a run whose header says that it starts from a round of the parent.

    Args:
        needed: what it reads of the parent's files.

    Raises:
        RunBusyError: the parent is being pruned or deleted.
        DroppedFileError: some of what is needed was removed on purpose.
        Others as for :meth:`storage.log.store.Store.create_run`.
    """
    parent.check_kept(needed)
    child = store.create_run(name, {**header, "parent": {"run": parent.name, "round": round}})
    try:
        # Once the header is there: whoever prunes looks for forks after its session is there, so one sees the other.
        _check_may_fork(store.run(parent.name, intact_part=True), needed)
    except BaseException:  # also Ctrl-C: a fork that was never checked would keep its parent's files
        store.objects.delete([layout.entry_key(name, 0)])
        raise
    return child


def _check_may_fork(parent: Run, needed: Sequence[FileRef]) -> None:
    holder = parent.session
    if parent.state == "running" and holder is not None and holder.meta.get(_PURPOSE) is not None:
        purpose = holder.meta[_PURPOSE]
        being = _BEING.get(purpose, purpose)
        raise RunBusyError(f"run '{parent.name}' cannot be forked while it is being {being}: wait")
    parent.check_kept(needed)


def _check_no_forks(store: Store, name: str) -> None:
    found = [fork for fork, parent in parents(store.objects, but=name).items() if parent and parent[0] == name]
    if found:
        many = len(found) > 1
        raise RunHasForksError(
            f"run '{name}' has the fork{'s' * many} {', '.join(found)}, which name{'' if many else 's'} its files: "
            f"delete {'them' if many else 'it'} first, or prune '{name}' instead"
        )
