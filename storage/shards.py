"""Arrow tables as Parquet files: written once under a unique name, read back only as they were committed."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from storage import layout
from storage.errors import DamagedFileError, MissingObjectError, NotCommittedError, QueryError, StoreError
from storage.manifest import FileRef, digest_of
from storage.releases import why_missing
from storage.store import Store

_FORMAT = ds.ParquetFileFormat()
# What reading a file that is no Parquet, or is damaged, can raise.
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError)


def write_table(
    store: Store, run: str, round: int, stage: str, table: pa.Table | pa.RecordBatchReader, shard: int | None = None
) -> FileRef:
    """Write a table, or batches as they come, to a new file; invisible to readers until it is committed.

    Raises:
        StorageFullError, StorageAccessError, BackendError: it could not be written; nothing is left behind.
    """
    key = layout.new_shard_key(run, round, stage, shard)
    rows = 0
    with store.objects.sink(key) as sink:
        reader = table.to_reader() if isinstance(table, pa.Table) else table
        with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), table.schema, compression="zstd") as writer:
            for batch in reader:
                rows += batch.num_rows
                writer.write_batch(batch)
    return FileRef(key, sink.bytes, sink.sha256, rows=rows)


def read_table(
    store: Store, files: Sequence[FileRef], columns: Sequence[str] | None = None, *, verify: bool = True
) -> pa.Table:
    """The rows of the files, in their order, with the metadata of schema and fields.

    Args:
        verify: compare size and SHA-256 with what was committed, which reads every byte.

    Raises:
        DamagedFileError: a file is missing, or is not the one that was committed.
        NotCommittedError: there are no files.
        QueryError: a file has no such column.
    """
    if not files:
        raise NotCommittedError("there are no files to read: the stage was not committed")
    return pa.concat_tables([_read_file(store, file, columns, verify) for file in files])


def open_dataset(store: Store, files: Sequence[FileRef], *, rounds: Mapping[str, int] | None = None) -> ds.Dataset:
    """The files as one lazy dataset, that reads only the columns and row groups it is asked for. Not verified.

    Args:
        rounds: round of each file by its path; gives the dataset a column ``round``.

    Raises:
        DamagedFileError: a file is missing or of another size than was committed.
        NotCommittedError: there are no files.
    """
    if not files:
        raise NotCommittedError("there are no files to read: the stage was not committed")
    fragments = []
    for file in files:
        check_size(store, file)
        partition = None if rounds is None else ds.field("round") == pa.scalar(rounds[file.path], pa.int32())
        path = store.objects.local_path(file.path)
        source = pa.PythonFile(store.objects.open(file.path), mode="r") if path is None else str(path)
        system = None if path is None else LocalFileSystem()
        fragments.append(_FORMAT.make_fragment(source, system, partition_expression=partition))
    # The files of a stage have one schema; a version that added a column shows in the newest file.
    schemas = [_schema(fragment, file) for fragment, file in ((fragments[0], files[0]), (fragments[-1], files[-1]))]
    schema = pa.unify_schemas(schemas)
    if rounds is not None:
        schema = schema.insert(0, pa.field("round", pa.int32()))
    return ds.FileSystemDataset(fragments, schema, _FORMAT)


def check_size(store: Store, file: FileRef) -> None:
    """DamagedFileError where the file is missing or has another size than was committed."""
    size = store.objects.size(file.path)
    if size is None:
        raise _missing(store, file)
    if size != file.bytes:
        raise DamagedFileError(f"{file.path} is damaged: it has {size} bytes, and was committed with {file.bytes}")


def _read_file(store: Store, file: FileRef, columns: Sequence[str] | None, verify: bool) -> pa.Table:
    source = (
        pa.BufferReader(_verified(store, file)) if verify else pa.PythonFile(store.objects.open(file.path), mode="r")
    )
    try:
        parquet = pq.ParquetFile(source)
        missing = set(columns or ()) - set(parquet.schema_arrow.names)
        if missing:
            raise QueryError(f"{file.path} has no column {sorted(missing)}: it has {parquet.schema_arrow.names}")
        table = parquet.read(columns=None if columns is None else list(columns))
    except QueryError:
        raise
    except PARQUET_ERRORS as error:
        raise DamagedFileError(f"{file.path} cannot be read as Parquet: {error}") from error
    if file.rows is not None and table.num_rows != file.rows:
        raise DamagedFileError(f"{file.path} has {table.num_rows} rows, and was committed with {file.rows}")
    return table


def _verified(store: Store, file: FileRef) -> bytes:
    try:
        data = store.objects.read(file.path)
    except MissingObjectError as error:
        raise _missing(store, file) from error
    if len(data) != file.bytes or digest_of(data) != file.sha256:
        raise DamagedFileError(
            f"{file.path} is damaged: its {len(data)} bytes are not the {file.bytes} bytes that were committed"
        )
    return data


def _missing(store: Store, file: FileRef) -> StoreError:
    damage = DamagedFileError(f"{file.path} is missing: it was committed with {file.bytes} bytes")
    return why_missing(store.objects, [file]) or damage


def _schema(fragment: ds.Fragment, file: FileRef) -> pa.Schema:
    try:
        return fragment.physical_schema
    except PARQUET_ERRORS as error:
        raise DamagedFileError(f"{file.path} cannot be read as Parquet: {error}") from error
