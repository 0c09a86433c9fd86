"""What the next round of a run reads, and whether it is all there: asked before any work starts."""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import pyarrow.parquet as pq

from storage.errors import CorruptEntryError, DamagedFileError, StoreError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import why_missing
from storage.tables.shards import PARQUET_ERRORS

CARRIED_STAGES = ("checkpoint", "probe", "optimizer", "ema", "eval_candidates", "eval_judgments")
"""The stages of a finished round that the next round reads; of round 0 they are the baseline of every round."""

STATES = ("optimizer", "ema")
"""Those that only the round after it reads, and only where its recipe says so."""

_PARALLEL = 8
_CHUNK = 4 * 2**20
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Checked:
    """A file that was read again.

    Attributes:
        problem: what is wrong with it; None where it is as it was committed, or was removed on purpose.
        columns: the schema of a table, as text.
        dropped: whether it was removed on purpose.
    """

    file: FileRef
    problem: str | None = None
    columns: str | None = None
    dropped: bool = False


def inputs_of_next_round(run: Run, number: int, staleness: int) -> list[FileRef]:
    """The files that a round after round ``number`` reads of that round, of round 0, and of the one that samples."""
    files = [*run.files(0, "prompts")]
    for round in sorted({0, number}):
        for stage in CARRIED_STAGES:
            files += run.files(round, stage)
    for round in sampling_rounds(number, staleness):
        files += run.files(round, "probe")
    files += weights_of_next_round(run, number, staleness)
    return list({file.path: file for file in files}.values())


def weights_of_next_round(run: Run, number: int, staleness: int, unread: Collection[str] = ()) -> list[FileRef]:
    """What a round after round ``number`` reads of those files that pruning takes.

    Args:
        unread: which of ``STATES`` it does not read.
    """
    files = [file for stage in STATES if stage not in unread for file in run.files(number, stage)]
    for round in sampling_rounds(number, staleness):
        files += run.files(round, "checkpoint")
        if is_adapter(run.files(round, "checkpoint")):
            files += base_of(run, round)
    return files


def sampling_rounds(number: int, staleness: int) -> list[int]:
    """The rounds whose policies the round after ``number`` needs: the newest, and the one that samples."""
    return sorted({number, max(number - staleness, 0)})


def staleness_of(run: Run) -> int:
    """By how many rounds the policy that samples is behind the newest, as the recipe in the header has it."""
    recipe = run.header.get("recipe")
    return int(recipe.get("staleness", 0)) if isinstance(recipe, dict) else 0


def is_adapter(files: Sequence[FileRef]) -> bool:
    """Whether a checkpoint is an adapter, which needs the whole checkpoint that it changes."""
    return any(file.name == _ADAPTER for file in files)


def base_of(run: Run, number: int) -> list[FileRef]:
    """The whole checkpoint that a round's adapter changes: that of the last round before it which has one."""
    earlier = (run.files(round, "checkpoint") for round in range(number - 1, -1, -1))
    return next((files for files in earlier if files and not is_adapter(files)), [])


def open_to_go_on(store: Store, name: str) -> Run:
    """The run of that name.

    Raises:
        CorruptEntryError: its log is damaged; the message names the newest good checkpoint, and the way on from it.
    """
    try:
        return store.run(name)
    except CorruptEntryError as error:
        try:
            remedy = way_on(store, store.run(name, intact_part=True))
        except CorruptEntryError:
            raise error from None
        raise CorruptEntryError(f"{error}; {remedy}") from error


def check_inputs(
    store: Store, run: Run, number: int | None = None, staleness: int | None = None, unread: Collection[str] = ()
) -> None:
    """Whether a run can go on after round ``number``, or where it is; every byte that it would read is read.

    Args:
        staleness: that of the rounds that are to follow, where it is not the run's own.
        unread: which of ``STATES`` they do not read.

    Raises:
        DamagedFileError: a file is damaged; the message names the newest good checkpoint, and the way on from it.
        DroppedFileError: weights that the next round needs were removed on purpose.
    """
    staleness = staleness_of(run) if staleness is None else staleness
    finished = run.finished
    files = [file for entry in run.unfinished() for file in entry.files] if number is None else []
    last = number if number is not None else (finished[-1] if finished else None)
    if last is not None:
        files += inputs_of_next_round(run, last, staleness)
    dropped = run.dropped
    if last is not None:
        run.check_kept(weights_of_next_round(run, last, staleness, unread))
    checked: dict[str, Checked] = {}
    problems = list(_problems(store, [file for file in files if file.path not in dropped], checked))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DamagedFileError(f"run '{run.name}' cannot go on: {problems[0]}{more}; {way_on(store, run, checked)}")


def way_on(store: Store, run: Run, checked: dict[str, Checked] | None = None) -> str:
    """The newest good checkpoint of a damaged run, and the command that goes on from it."""
    newest = newest_good_checkpoint(store, run, {} if checked is None else checked)
    if newest is None:
        return "no round of it has all that a next one needs"
    return (
        f"the newest good checkpoint is that of round {newest}: 'rondo fork {run.name}@{newest} --name NEW' "
        "continues from it"
    )


def newest_good_checkpoint(store: Store, run: Run, checked: dict[str, Checked]) -> int | None:
    """The newest finished round with all that a next one needs; what is checked already is not read again."""
    dropped = run.dropped
    for number in reversed(run.finished):
        try:
            files = inputs_of_next_round(run, number, staleness_of(run))
        except StoreError:
            continue
        weights = run.files(number, "checkpoint")
        if any(file.path in dropped for file in files) or not weights:
            continue
        if not any(_problems(store, files, checked)) and not any(checked[file.path].dropped for file in files):
            return number
    return None


def check_files(store: Store, files: list[FileRef]) -> Iterator[Checked]:
    """Read files again, several at a time: size, SHA-256, and of a table its rows; in the order given."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        yield from pool.map(lambda file: check_file(store, file), files)


def check_file(store: Store, file: FileRef) -> Checked:
    """Read one file again."""
    try:
        size = store.objects.size(file.path)
        if size is None:
            gone = why_missing(store.objects, [file]) is not None
            return Checked(file, None if gone else f"{file.path} is missing", dropped=gone)
        if size != file.bytes:
            return Checked(file, f"{file.path} has {size} bytes, and was committed with {file.bytes}")
        if _digest(store, file) != file.sha256:
            return Checked(file, f"the bytes of {file.path} are not those that were committed")
        return Checked(file) if file.rows is None else _check_table(store, file)
    except StoreError as error:
        return Checked(file, str(error))


def _problems(store: Store, files: list[FileRef], checked: dict[str, Checked]) -> Iterator[str]:
    new = list({file.path: file for file in files if file.path not in checked}.values())
    checked |= {found.file.path: found for found in check_files(store, new)}
    for path in dict.fromkeys(file.path for file in files):
        problem = checked[path].problem
        if problem is not None:
            yield problem


def _digest(store: Store, file: FileRef) -> str:
    digest = sha256()
    with store.objects.open(file.path) as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_table(store: Store, file: FileRef) -> Checked:
    try:
        with store.objects.open(file.path) as content:
            parquet = pq.ParquetFile(content)
            rows, columns = parquet.metadata.num_rows, str(parquet.schema_arrow.remove_metadata())
    except PARQUET_ERRORS as error:
        return Checked(file, f"{file.path} cannot be read as Parquet: {error}")
    if rows != file.rows:
        return Checked(file, f"{file.path} has {rows} rows, and was committed with {file.rows}")
    return Checked(file, columns=columns)
