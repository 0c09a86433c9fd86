"""What may be removed of a run: the weights of rounds that nobody needs any more, or the run as a whole.

Tables stay. So do the weights of round 0 (the KL to the initial policy, adapters and forks need them), of the newest
finished round (the next one starts from them), and whatever a fork names. Of a round that stays, so does the policy
that samples the one after it, which with staleness is an earlier one: without the optimizer's state and the average,
which nobody would read.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import CorruptEntryError, RunBusyError, RunHasForksError, StoreError
from storage.log.manifest import Entry, FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import forks, needed_by_forks, parents
from storage.objects import layout
from storage.verify.resume_check import base_of, is_adapter, sampling_rounds, staleness_of

WEIGHT_STAGES = frozenset({"checkpoint", "optimizer", "ema", "update_state"})
"""The stages that are directories of weights and of the optimizer's state; all others are tables, and are kept."""

PRUNED = "pruned"
_PURPOSE = "purpose"


@dataclass(frozen=True)
class Removal:
    """What pruning takes of a stage of a round.

    Attributes:
        files: what the run gives up.
        freed: bytes that go; those of files that lie in another run stay, and are counted as 0.
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
        for_forks: rounds that would lose their weights, if forks did not name them.
        forks: the forks of the run, and theirs.
    """

    removals: tuple[Removal, ...]
    for_forks: tuple[int, ...]
    forks: tuple[str, ...]


def rounds_with_weights(run: Run) -> list[int]:
    """The finished rounds whose weights are there."""
    dropped = run.dropped
    return [
        number
        for number in run.finished
        if (files := run.files(number, "checkpoint")) and not any(file.path in dropped for file in files)
    ]


def plan_pruning(store: Store, run: Run, keep: Collection[int]) -> Pruning:
    """What would go if the weights of these rounds, and those that are always kept, stayed.

    Raises:
        CorruptEntryError: the log of a fork is damaged, so that nobody knows what it names.
    """
    finished = [entry.round for entry in run.rounds()]
    whole, staleness = {*keep, *finished[:1], *finished[-1:]}, staleness_of(run)
    sampling = {number for after in whole for number in sampling_rounds(after, staleness)}
    entries = [entry for stage in sorted(WEIGHT_STAGES) for entry in run.entries(stage=stage)]
    kept = [
        entry
        for entry in entries
        if entry.round in whole or entry.round not in finished or (entry.round in sampling and _is_checkpoint(entry))
    ]
    kept_paths = {file.path for entry in kept for file in entry.files}
    for number in {entry.round for entry in kept if is_adapter(entry.files)}:
        kept_paths |= {file.path for file in base_of(run, number)}
    needed, taken = needed_by_forks(store.objects, run.name), set(run.dropped)
    removals, for_forks = [], set()
    for entry in sorted(entries, key=lambda entry: (entry.round, entry.number)):
        paths = {file.path for file in entry.files}
        files = tuple(file for file in entry.files if file.path not in taken)
        if not files or entry.key is None or paths & kept_paths:
            continue
        if paths & needed:
            for_forks.add(entry.round)
            continue
        freed = sum(file.bytes for file in files if layout.run_of(file.path) == run.name)
        removals.append(Removal(entry.round, entry.key.stage, files, freed))
        taken |= paths
    return Pruning(tuple(removals), tuple(sorted(for_forks)), tuple(forks(parents(store.objects), run.name)))


def prune(store: Store, run: Run, keep: Collection[int]) -> Pruning:
    """Remove what :func:`plan_pruning` says; the tables stay.

    Raises:
        RunBusyError: another process writes to the run.
    """
    with run.writer(meta={_PURPOSE: "prune"}) as writer:
        planned = plan_pruning(store, run, keep)
        writer.drop([file for removal in planned.removals for file in removal.files], PRUNED)
    return planned


def check_deletable(store: Store, name: str) -> None:
    """Refuse at once what :func:`delete_run` would refuse, but for another process that writes.

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
    """Remove a run with all that is its own; what is left of one whose deletion was cut off is removed too.

    The first log entry goes first: from then on there is no such run.

    Raises:
        RunHasForksError: other runs name its files.
        RunBusyError: another process writes to it.
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
            with run.writer(take_over=take_over, meta={_PURPOSE: "delete"}) as writer:
                _check_no_forks(store, name)  # again: one may have been made before this session was seen
                writer.leave()
                store.objects.delete([layout.entry_key(name, 0)])
    store.objects.delete([item.key for item in store.objects.listing(prefix)])
    store.objects.remove_empty(prefix)


def create_fork(
    store: Store, parent: Run, round: int, name: str, header: dict[str, Any], needed: Sequence[FileRef] = ()
) -> Run:
    """A new run whose header says that it starts from a round of the parent.

    Args:
        needed: what it reads of the parent's, beside the weights of that round.

    Raises:
        RunBusyError: the parent is being pruned or deleted.
        DroppedFileError: the weights of that round, or what else is needed, were removed on purpose.
        Others as for :meth:`storage.log.store.Store.create_run`.
    """
    needed = [*parent.files(round, "checkpoint"), *needed]
    parent.check_kept(needed)
    child = store.create_run(name, {**header, "parent": {"run": parent.name, "round": round}})
    try:
        # Once the header is there: whoever prunes looks for forks after its session is there, so one sees the other.
        _check_may_fork(store.run(parent.name, intact_part=True), needed)
    except StoreError:
        store.objects.delete([layout.entry_key(name, 0)])
        raise
    return child


def _is_checkpoint(entry: Entry) -> bool:
    return entry.key is not None and entry.key.stage == "checkpoint"


def _check_may_fork(parent: Run, needed: Sequence[FileRef]) -> None:
    holder = parent.session
    if parent.state == "running" and holder is not None and holder.meta.get(_PURPOSE) is not None:
        raise RunBusyError(
            f"run '{parent.name}' cannot be forked while 'rondo {holder.meta[_PURPOSE]}' works on it: wait"
        )
    parent.check_kept(needed)


def _check_no_forks(store: Store, name: str) -> None:
    found = [fork for fork, parent in parents(store.objects, but=name).items() if parent and parent[0] == name]
    if found:
        many = len(found) > 1
        raise RunHasForksError(
            f"run '{name}' has the fork{'s' * many} {', '.join(found)}, which name{'' if many else 's'} its files: "
            f"delete {'them' if many else 'it'} first, or prune '{name}' instead"
        )
