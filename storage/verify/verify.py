"""A run read again, byte by byte: what is damaged, what that means, and which rounds are still good."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage.errors import CorruptEntryError, StoreError
from storage.log.manifest import Entry, FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.objects import layout
from storage.tables.checkpoints import find_shared
from storage.verify.damage import Damage
from storage.verify.lineage import check_lineage, check_parent
from storage.verify.log import check_log
from storage.verify.resume_check import CARRIED_STAGES, Checked, check_files, newest_good_checkpoint

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and all bytes to read."""

_MANIFEST = (
    "this run names the files itself and goes on; a new run with the same warm start stops until this is deleted"
)


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        rounds: the finished rounds that can be listed.
        good: those of which everything is intact.
        newest_checkpoint: the newest round that can be gone on from.
        dropped: how many files were removed on purpose.
        files, bytes: how many were read.
    """

    run: str
    rounds: tuple[int, ...]
    good: tuple[int, ...]
    newest_checkpoint: int | None
    damages: tuple[Damage, ...]
    dropped: int
    files: int
    bytes: int


def verify(store: Store, name: str, progress: Progress | None = None) -> Verification:
    """Re-read all that a run names: its log, its tables and weights, those of its parent and shared ones included.

    Raises:
        RunNotFoundError: there is no such run, nor a log of one.
    """
    layout.check_run_name(name)
    if not store.objects.keys(layout.log_prefix(name)):
        raise store.no_run(name)
    damages = check_log(store.objects, name)
    try:
        run = Run(store.objects, name, intact_part=True)
        dropped = run.dropped
    except StoreError:
        return Verification(name, (), (), None, tuple(damages), 0, 0, 0)
    commits, unreadable = _commits(run)
    refs = {file.path: (file, entry) for entry in commits for file in entry.files if file.path not in dropped}
    checked = _read(store, [file for file, _ in refs.values()], progress)
    for path, found in checked.items():
        if found.problem is not None:
            damages.append(_file_damage(refs[path][1], path, found.problem))
    damages += [*_columns(checked, commits), *_additions(store, refs), *_manifests(store, refs)]
    damages += [*check_lineage(run, commits), *check_parent(store, run, commits)]
    rounds = tuple(run.finished)
    bad = {damage.round for damage in damages if damage.spoils} | unreadable
    return Verification(
        name,
        rounds,
        tuple(number for number in rounds if number not in bad),
        newest_good_checkpoint(store, run, checked),
        tuple(damages),
        len(dropped) + sum(found.dropped for found in checked.values()),
        len(checked),
        sum(found.file.bytes for found in checked.values()),
    )


def _commits(run: Run) -> tuple[list[Entry], set[int]]:
    """All commits, and the rounds whose commits cannot be listed any more."""
    commits, unreadable = [], set()
    for number in run.finished:
        try:
            commits += run.entries(round=number)
        except CorruptEntryError:
            unreadable.add(number)
    return commits + run.unfinished(), unreadable


def _read(store: Store, files: Sequence[FileRef], progress: Progress | None) -> dict[str, Checked]:
    total, done, checked = sum(file.bytes for file in files), 0, {}
    for found in check_files(store, list(files)):
        checked[found.file.path] = found
        done += found.file.bytes
        if progress is not None:
            progress(done, total)
    return checked


def _file_damage(entry: Entry, path: str, problem: str) -> Damage:
    stage = entry.key.stage if entry.key else ""
    if stage == "prompts":
        meaning = "the prompts of the run: no round of it can go on"
    elif stage in CARRIED_STAGES and entry.round == 0:
        meaning = f"{stage} of round 0, which every round compares with: no round of the run can go on"
    elif stage in CARRIED_STAGES:
        meaning = f"{stage} of round {entry.round}: nothing can go on from this round; other rounds are not concerned"
    else:
        meaning = (
            f"{stage} of round {entry.round}: it cannot be read any more; weights and other tables are not concerned"
        )
    return Damage(path, entry.round, problem, meaning)


def _columns(checked: dict[str, Checked], commits: Sequence[Entry]) -> Iterator[Damage]:
    """Shards of one stage whose columns differ."""
    first: dict[tuple[int, str], str] = {}
    for entry in commits:
        for file in entry.files:
            columns = checked[file.path].columns if file.path in checked else None
            if columns is None or entry.key is None:
                continue
            if first.setdefault((entry.round, entry.key.stage), columns) != columns:
                yield _file_damage(entry, file.path, f"{file.path} has other columns than the shards beside it")


def _additions(store: Store, refs: dict[str, tuple[FileRef, Entry]]) -> Iterator[Damage]:
    """Files that lie in a committed directory, and were not committed."""
    directories = {path.removesuffix(f"/{file.name}"): entry for path, (file, entry) in refs.items() if file.name}
    # Elsewhere a directory is downloaded file by file, and what lies beside them is not.
    for directory, entry in directories.items() if store.is_local else ():
        for item in store.objects.listing(directory):
            if item.key not in refs:
                yield _file_damage(entry, item.key, f"{item.key} was not committed, but would be loaded with the rest")


def _manifests(store: Store, refs: dict[str, tuple[FileRef, Entry]]) -> Iterator[Damage]:
    """Manifests of shared directories that are damaged, or name other files than the run does."""
    shared: dict[str, tuple[set[FileRef], Entry]] = {}
    for path, (file, entry) in refs.items():
        if layout.is_shared_file(path):
            shared.setdefault(layout.shared_manifest_of(path), (set(), entry))[0].add(file)
    for key, (files, entry) in shared.items():
        _, kind, digest, _ = key.split("/")
        try:
            there = find_shared(store, kind, digest)
            problem = f"{key} is missing" if there is None else f"{key} names other files than the run"
            if there is not None and files <= set(there):
                continue
        except StoreError as error:
            problem = str(error)
        yield Damage(key, entry.round, problem, _MANIFEST, spoils=False)
