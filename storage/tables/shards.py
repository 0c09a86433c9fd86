"""Arrow tables as Parquet files: written once under a unique name, read back only as they were committed.

How sure a reader can be that it has what was committed depends on how much of a file it reads:

- the whole file (:func:`read_table`): every byte is compared, through size and SHA-256;
- some columns (:func:`open_table`, :func:`read_table` with ``verify=False``, ``datasets.open_dataset``): the size is
  compared, and the CRC-32 of each page that is read. Other pages are not checked. The footer has no checksum of its
  own: damage there shows only if it makes the file unreadable or changes its number of rows. Only the whole file's
  SHA-256 is proof against a deliberate change.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import DamagedFileError, MissingObjectError, NotCommittedError, QueryError, StoreError
from storage.log.manifest import FileRef, digest_of
from storage.log.store import Store
from storage.log.tombstones import why_missing
from storage.objects import layout

ROW_GROUP = 16_384
"""Rows that are compressed, and held in memory, together."""
# As measured by tests/benchmarks/bench_store.py: log-probabilities shrink by half when their bytes are stored by
# position; level 3 is the last one that costs less time than the disk it saves.
_COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "write_page_checksum": True}
_BUFFER = 2**20
# A column that holds one number only, as this module writes it, has 64 values to a byte.
_VALUES_PER_BYTE = 512
_SMALL = 4_000_000
# What reading a file that is no Parquet, or is damaged, can raise.
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError)


def write_table(
    store: Store, run: str, round: int, stage: str, table: pa.Table | pa.RecordBatchReader, shard: int | None = None
) -> FileRef:
    """Writes a table, or batches as they come, to a new file; invisible to readers until it is committed.

    Holds no more than :data:`ROW_GROUP` rows and one batch at a time.

    Raises:
        StorageFullError, StorageAccessError, BackendError: it could not be written; nothing is left behind.
    """
    key = layout.new_shard_key(run, round, stage, shard)
    rows = 0
    with store.objects.sink(key) as sink:
        batches = table.to_batches() if isinstance(table, pa.Table) else table
        options = _COMPRESSION | encodings(table.schema)
        # Parquet is written in many small pieces.
        buffered = pa.BufferedOutputStream(pa.PythonFile(sink, mode="w"), _BUFFER)
        with buffered, pq.ParquetWriter(buffered, table.schema, **options) as writer:
            for group in _row_groups(batches):
                rows += group.num_rows
                writer.write_table(group, row_group_size=ROW_GROUP)
    return FileRef(key, sink.bytes, sink.sha256, rows=rows)


def read_table(
    store: Store, files: Sequence[FileRef], columns: Sequence[str] | None = None, *, verify: bool = True
) -> pa.Table:
    """Reads the rows of the files, in their order, with the metadata of schema and fields.

    Args:
        verify: compare size and SHA-256 with what was committed, which reads every byte.

    Raises:
        DamagedFileError: a file is missing, or is not the one that was committed.
        DroppedFileError: a file was removed on purpose.
        NotCommittedError: there are no files.
        QueryError: a file has no such column.
    """
    if not files:
        raise NotCommittedError("there are no files to read: the stage was not committed")
    # A version that added a column may have written some of the files: the others have nulls there.
    return pa.concat_tables([_read_file(store, file, columns, verify) for file in files], promote_options="default")


def open_table(store: Store, file: FileRef) -> pq.ParquetFile:
    """Opens a file that reads only the columns and row groups it is asked for, and checks the pages that it reads.

    Raises:
        DamagedFileError: it is missing, has another size or number of rows than was committed, or is no Parquet.
        DroppedFileError: it was removed on purpose.
    """
    check_size(store, file)
    path = store.objects.local_path(file.path)
    source = pa.PythonFile(store.objects.open(file.path), mode="r") if path is None else path
    try:
        parquet = pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)
    except PARQUET_ERRORS as error:
        raise DamagedFileError(f"{file.path} cannot be read as Parquet: {error}") from error
    _check_promise(file, parquet.metadata)
    return parquet


def check_size(store: Store, file: FileRef) -> None:
    """Checks that the file is there, with the size that was committed.

    Raises:
        DamagedFileError: it is missing, or has another size.
        DroppedFileError: it was removed on purpose.
    """
    size = store.objects.size(file.path)
    if size is None:
        raise _missing(store, file)
    if size != file.bytes:
        raise DamagedFileError(f"{file.path} is damaged: it has {size} bytes, and was committed with {file.bytes}")


def _read_file(store: Store, file: FileRef, columns: Sequence[str] | None, verify: bool) -> pa.Table:
    try:
        parquet = pq.ParquetFile(pa.BufferReader(_verified(store, file))) if verify else open_table(store, file)
        _check_promise(file, parquet.metadata)
        missing = set(columns or ()) - set(parquet.schema_arrow.names)
        if missing:
            raise QueryError(f"{file.path} has no column {sorted(missing)}: it has {parquet.schema_arrow.names}")
        table = parquet.read(columns=None if columns is None else list(columns))
    except StoreError:
        raise
    except PARQUET_ERRORS as error:
        raise DamagedFileError(f"{file.path} cannot be read as Parquet: {error}") from error
    _check_rows(file, table.num_rows)
    return table


def _check_promise(file: FileRef, metadata: pq.FileMetaData) -> None:
    """Refuses, before a row is read, a file with another number of rows than committed, or one that fills memory."""
    _check_rows(file, metadata.num_rows)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    values = sum(group.column(column).num_values for group in groups for column in range(group.num_columns))
    if values > max(_SMALL, _VALUES_PER_BYTE * file.bytes):
        raise DamagedFileError(
            f"{file.path} holds {values} values in {file.bytes} bytes, more than any table of a run: it is not read"
        )


def _check_rows(file: FileRef, rows: int) -> None:
    if file.rows is not None and rows != file.rows:
        raise DamagedFileError(f"{file.path} has {rows} rows, and was committed with {file.rows}")


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """Says how a writer of this schema encodes its columns: floats within lists byte by byte, all else by dictionary.

    The floats of a list, such as the log-probabilities of tokens, hardly repeat; single ones, such as scores, often do.
    """
    split = [
        path for field in schema for path, kind in _leaves(field.name, field.type) if _is_float_of_list(path, kind)
    ]
    others = [path for field in schema for path, _ in _leaves(field.name, field.type) if path not in split]
    return {"use_dictionary": others, "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT")}


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yields the Parquet columns below a column, under the names that Parquet gives them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", kind.key_type)
        yield from _leaves(f"{path}.key_value.value", kind.item_type)
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _leaves(f"{path}.{kind.field(index).name}", kind.field(index).type)
    else:
        yield path, kind


def _is_float_of_list(path: str, kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) and path.endswith(".list.element")


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yields the batches, joined until they fill a row group."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        rows = sum(part.num_rows for part in waiting)
        if rows >= ROW_GROUP:
            joined = pa.Table.from_batches(waiting)
            yield joined.slice(0, rows - rows % ROW_GROUP)
            waiting = joined.slice(rows - rows % ROW_GROUP).to_batches()
    if waiting:
        yield pa.Table.from_batches(waiting)


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
