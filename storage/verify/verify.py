"""A run read again, byte by byte: what is damaged, what that means, and which rounds are still good."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from storage.errors import CorruptEntryError, StoreError, remedy
from storage.log.manifest import Entry, FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import parent_of
from storage.objects import layout
from storage.tables.checkpoints import find_shared
from storage.verify.annexes import annex_damages
from storage.verify.damage import Checked, Damage, check_files, problems_in
from storage.verify.log import check_log

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and all bytes to read."""

Needed = Callable[[Run, int], Sequence[FileRef]]
"""The files of a run that a round after this one reads; none if no round can follow it."""

_CONTRADICTED = "the round is not what its own records say it was made from: do not build on it"
_MANIFEST = "this run names the files itself and goes on; a new run that would share them stops until this is deleted"


@dataclass(frozen=True)
class Rules:
    """What whoever writes the rounds of a run knows of them, and the store does not.

    Attributes:
        needed: what the next round reads.
        loss: what it means for the run that a file of this commit is damaged, as a sentence.
        contradictions: of all commits of the run, the entries whose records contradict others, each with the problem.
    """

    needed: Needed
    loss: Callable[[Entry], str]
    contradictions: Callable[[Run, Sequence[Entry]], Iterable[tuple[Entry, str]]]


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        rounds: the finished rounds that can be listed.
        good: those of which everything is intact.
        newest_good: the newest round that the run can go on from.
        dropped: how many files were removed on purpose.
        files, bytes: how many were read.
    """

    run: str
    rounds: tuple[int, ...]
    good: tuple[int, ...]
    newest_good: int | None
    damages: tuple[Damage, ...]
    dropped: int
    files: int
    bytes: int


def verify(store: Store, name: str, rules: Rules, progress: Progress | None = None) -> Verification:
    """Reads again all that a run names: its log, its tables and weights, those of its parent and shared ones included.

    What lies in its annexes is read too, and spoils no round.

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
    named = _named(commits)
    checked = _read(store, [file for file, _ in refs.values()], progress)
    for path, found in checked.items():
        if found.problem is not None:
            damages += [_file_damage(entry, path, found.problem, rules) for entry in named[path]]
    damages += [*_columns(checked, commits, rules), *_additions(store, refs, named, rules), *_manifests(store, refs)]
    damages += [_contradiction(run, entry, problem) for entry, problem in rules.contradictions(run, commits)]
    damages += _not_of_parent(store, run, commits)
    damages += annex_damages(store, run, checked)
    rounds = tuple(run.finished)
    bad = {damage.round for damage in damages if damage.spoils} | unreadable
    return Verification(
        name,
        rounds,
        tuple(number for number in rounds if number not in bad),
        newest_good_round(store, run, rules.needed, checked),
        tuple(damages),
        len(dropped) + sum(found.dropped for found in checked.values()),
        len(checked),
        sum(found.file.bytes for found in checked.values()),
    )


def newest_good_round(store: Store, run: Run, needed: Needed, checked: dict[str, Checked]) -> int | None:
    """Finds the newest finished round with all that a next one needs; what is ``checked`` already is not read again."""
    dropped = run.dropped
    for number in reversed(run.finished):
        try:
            files = needed(run, number)
        except StoreError:
            continue
        if not files or any(file.path in dropped for file in files):
            continue
        if not any(problems_in(store, files, checked)) and not any(checked[file.path].dropped for file in files):
            return number
    return None


def _commits(run: Run) -> tuple[list[Entry], set[int]]:
    """Returns all commits, and the rounds whose commits cannot be listed any more."""
    commits, unreadable = [], set()
    for number in run.finished:
        try:
            commits += run.entries(round=number)
        except CorruptEntryError:
            unreadable.add(number)
    return commits + run.unfinished(), unreadable


def _named(commits: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Returns the commits that name each file, the newest of each round; a round may share files with one before."""
    found: dict[str, dict[int, Entry]] = {}
    for entry in commits:
        for file in entry.files:
            found.setdefault(file.path, {})[entry.round] = entry
    return {path: list(entries.values()) for path, entries in found.items()}


def _read(store: Store, files: Sequence[FileRef], progress: Progress | None) -> dict[str, Checked]:
    total, done, checked = sum(file.bytes for file in files), 0, {}
    for found in check_files(store, list(files)):
        checked[found.file.path] = found
        done += found.file.bytes
        if progress is not None:
            progress(done, total)
    return checked


def _file_damage(entry: Entry, path: str, problem: str, rules: Rules) -> Damage:
    return Damage(path, entry.round, problem, rules.loss(entry))


def _contradiction(run: Run, entry: Entry, problem: str) -> Damage:
    return Damage(layout.entry_key(run.name, entry.number), entry.round, problem, _CONTRADICTED)


def _not_of_parent(store: Store, run: Run, commits: Sequence[Entry]) -> Iterator[Damage]:
    """Finds the entries of a fork's past that are not its parent's."""
    start = parent_of(run.header)
    if start is None:
        return
    name, last = start
    try:
        parent = store.run(name, intact_part=True)
        theirs = {(entry.key, entry.files) for number in range(last + 1) for entry in parent.entries(round=number)}
    except StoreError as error:
        yield Damage(layout.run_prefix(name), None, f"the parent: {error}", remedy("verify", name))
        return
    for entry in commits:
        inherited = entry.round <= last and entry.round in run.finished
        if inherited and (entry.key, entry.files) not in theirs:
            yield _contradiction(run, entry, f"{entry.key} is not what run '{name}' has")


def _columns(checked: dict[str, Checked], commits: Sequence[Entry], rules: Rules) -> Iterator[Damage]:
    """Finds shards of one stage whose columns differ."""
    first: dict[tuple[int, str], str] = {}
    for entry in commits:
        for file in entry.files:
            columns = checked[file.path].columns if file.path in checked else None
            if columns is None or entry.key is None:
                continue
            if first.setdefault((entry.round, entry.key.stage), columns) != columns:
                problem = f"{file.path} has other columns than the shards beside it"
                yield _file_damage(entry, file.path, problem, rules)


def _additions(
    store: Store, refs: dict[str, tuple[FileRef, Entry]], named: dict[str, list[Entry]], rules: Rules
) -> Iterator[Damage]:
    """Finds files that lie in a committed directory, and were not committed."""
    directories = {path.removesuffix(f"/{file.name}"): named[path] for path, (file, _) in refs.items() if file.name}
    # Elsewhere a directory is downloaded file by file, and what lies beside them is not.
    for directory, entries in directories.items() if store.is_local else ():
        for item in store.objects.listing(directory):
            if item.key not in refs:
                problem = f"{item.key} was not committed, but would be loaded with the rest"
                for entry in entries:
                    yield _file_damage(entry, item.key, problem, rules)


def _manifests(store: Store, refs: dict[str, tuple[FileRef, Entry]]) -> Iterator[Damage]:
    """Finds manifests of shared directories that are damaged, or name other files than the run does."""
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
