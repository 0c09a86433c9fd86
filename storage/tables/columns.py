"""A committed table of which only the columns and rows that a question needs are read."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import DamagedFileError
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shards import PARQUET_ERRORS, open_table

ROW = "_row"
"""The column with the number of a row in the whole table, that :meth:`Columns.narrow` adds."""


class Columns:
    """The files of a stage as one table.

    Reads are partial: see ``storage/tables/shards.py`` for what is checked of them.

    Attributes:
        schema: the columns of all files; a file of an older version may lack some, which are null there.

    Raises:
        DamagedFileError: a file is missing, has another size or number of rows than was committed, or is no Parquet;
            from the reading methods, a page is damaged.
    """

    def __init__(self, store: Store, files: Sequence[FileRef], empty: pa.Schema | None = None) -> None:
        self._files = files
        self._open = [open_table(store, file) for file in files]
        schemas = [file.schema_arrow for file in self._open] or [empty or pa.schema([])]
        self.schema = pa.unify_schemas(schemas).remove_metadata()
        groups = [(n, g) for n, file in enumerate(self._open) for g in range(file.num_row_groups)]
        self._groups = groups
        sizes = [self._open[n].metadata.row_group(g).num_rows for n, g in groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    @property
    def num_rows(self) -> int:
        return int(self._starts[-1])

    def narrow(self, columns: Sequence[str]) -> pa.Table:
        """Reads these columns of all rows, with the number of each row; columns that the table lacks are left out."""
        wanted = self._schema([name for name in self.schema.names if name in columns])
        parts = [self._read(number, None, wanted) for number in range(len(self._open))]
        table = pa.concat_tables(parts) if parts else wanted.empty_table()
        # Not appended: a table without columns has no rows that the numbers could stand beside.
        return pa.table([*table.columns, pa.array(np.arange(self.num_rows))], names=[*wanted.names, ROW])

    def take(self, rows: pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
        """Reads these columns of some rows, in the order of the numbers; a null number gives a row of nulls.

        Only the row groups that hold these rows are read.
        """
        wanted = self._schema(columns)
        there = rows.drop_null().to_numpy()
        numbers = np.unique(there)
        group_of = np.searchsorted(self._starts, numbers, side="right") - 1
        parts = [wanted.empty_table()]
        for group in np.unique(group_of):
            number, index = self._groups[group]
            local = numbers[group_of == group] - self._starts[group]
            parts.append(self._read(number, index, wanted).take(pa.array(local)))
        places = np.zeros(len(rows), np.int64)
        missing = rows.is_null().to_numpy(zero_copy_only=False)
        places[~missing] = np.searchsorted(numbers, there)
        return pa.concat_tables(parts).take(pa.array(places, mask=missing))

    def _schema(self, columns: Sequence[str]) -> pa.Schema:
        # All are nullable: a row that is not there has no values.
        return pa.schema([pa.field(name, self.schema.field(name).type) for name in columns])

    def _read(self, number: int, group: int | None, wanted: pa.Schema) -> pa.Table:
        file: pq.ParquetFile = self._open[number]
        names = [name for name in wanted.names if name in file.schema_arrow.names]
        try:
            part = file.read(names) if group is None else file.read_row_group(group, names)
        except PARQUET_ERRORS as error:
            raise DamagedFileError(f"{self._files[number].path} cannot be read as Parquet: {error}") from error
        columns = [
            part[name] if name in names else pa.nulls(len(part), wanted.field(name).type) for name in wanted.names
        ]
        return pa.table(columns, schema=wanted)
