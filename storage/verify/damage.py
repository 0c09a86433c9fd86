"""How damage is described, and the files of a run read again to find it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.log.tombstones import why_missing
from storage.tables.shards import PARQUET_ERRORS

_PARALLEL = 8
_CHUNK = 4 * 2**20


@dataclass(frozen=True)
class Damage:
    """Something in the store that is not as it was written.

    Attributes:
        path: the object, or the run if it is no object in particular.
        round: the round that it belongs to; None if it belongs to none that is finished.
        problem: what is wrong.
        meaning: what that means for the run.
        spoils: whether the round can no longer be used; False if another object, such as a snapshot, makes up for it.
    """

    path: str
    round: int | None
    problem: str
    meaning: str
    spoils: bool = True


@dataclass(frozen=True)
class Checked:
    """A file that was read again.

    Attributes:
        problem: what is wrong with it; None if it is as it was committed, or was removed on purpose.
        columns: the schema of a table, as text.
        dropped: whether it was removed on purpose.
    """

    file: FileRef
    problem: str | None = None
    columns: str | None = None
    dropped: bool = False


def check_files(store: Store, files: list[FileRef]) -> Iterator[Checked]:
    """Reads files again, several at a time: size, SHA-256, and of a table its rows; in the order given."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        yield from pool.map(lambda file: check_file(store, file), files)


def check_file(store: Store, file: FileRef) -> Checked:
    """Reads one file again, and says what is wrong with it."""
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


def problems_in(store: Store, files: Sequence[FileRef], checked: dict[str, Checked]) -> Iterator[str]:
    """Yields what is wrong with files; those in ``checked`` are not read again, the others are added to it."""
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
