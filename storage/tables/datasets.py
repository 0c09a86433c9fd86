"""Committed Parquet files as one lazy dataset, for questions over many of them; ``shards.py`` says what is checked.

pyarrow's datasets are imported when one is opened, as not every reader of a table needs them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow.fs import LocalFileSystem

from storage.errors import DamagedFileError, NotCommittedError, QueryError
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shards import PARQUET_ERRORS, check_size

if TYPE_CHECKING:
    import pyarrow.dataset as ds


def open_dataset(store: Store, files: Sequence[FileRef], *, rounds: Mapping[str, int] | None = None) -> "ds.Dataset":
    """Opens the files as one lazy dataset, which reads only the columns and row groups it is asked for.

    Args:
        rounds: round of each file by its path; gives the dataset a column ``round``.

    Raises:
        DamagedFileError: a file is missing or of another size than was committed.
        DroppedFileError: a file was removed on purpose.
        NotCommittedError: there are no files.
        QueryError: the files are of versions whose columns do not go together.
    """
    import pyarrow.dataset as ds

    if not files:
        raise NotCommittedError("there are no files to read: the stage was not committed")
    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    parquet = ds.ParquetFileFormat(default_fragment_scan_options=checked)
    fragments = []
    for file in files:
        check_size(store, file)
        partition = None if rounds is None else ds.field("round") == pa.scalar(rounds[file.path], pa.int32())
        path = store.objects.local_path(file.path)
        source = pa.PythonFile(store.objects.open(file.path), mode="r") if path is None else str(path)
        system = None if path is None else LocalFileSystem()
        fragments.append(parquet.make_fragment(source, system, partition_expression=partition))
    # The files of a stage have one schema; a version that added a column shows in the newest file.
    schemas = [_schema(fragment, file) for fragment, file in ((fragments[0], files[0]), (fragments[-1], files[-1]))]
    try:
        schema = pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        raise QueryError(f"{files[0].path} and {files[-1].path} have columns of different types: {error}") from error
    if rounds is not None:
        schema = schema.insert(0, pa.field("round", pa.int32()))
    return ds.FileSystemDataset(fragments, schema, parquet)


def _schema(fragment: "ds.Fragment", file: FileRef) -> pa.Schema:
    try:
        return fragment.physical_schema
    except PARQUET_ERRORS as error:
        raise DamagedFileError(f"{file.path} cannot be read as Parquet: {error}") from error
