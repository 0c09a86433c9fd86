"""Questions about the data of one round, as people ask them.

A table can come joined with others of its round: a :class:`View` says how. DuckDB finds the rows of the answer from the
columns that the question names; the other columns are read for those rows alone. A question only reads: see
``storage/queries/duckdb.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import NotCommittedError, QueryError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.duckdb import clear_errors, locked_connection
from storage.tables.columns import ROW, Columns
from storage.tables.shards import read_table


@dataclass(frozen=True)
class Joined:
    """A table that is joined to the one that is shown.

    Attributes:
        stage: whose table it is.
        keys: the columns that the join needs.
        empty: the columns that it has if it was not committed.
        round: the round that it is of; None for the one that is asked for.
    """

    stage: str
    keys: Sequence[str]
    empty: pa.Schema
    round: int | None = None


@dataclass(frozen=True)
class View:
    """How a table is shown.

    Attributes:
        order: columns by which the rows are sorted; those that the table lacks are passed over.
        sql: the table and its joins: ``_t AS t`` is the table itself, ``_x`` the one joined as ``x``.
        keys: the columns of the table itself that the joins need.
        joined: the tables beside it, by what ``sql`` calls them.
        beside: what stands beside the table's own columns, as name: (table, column).
        first: the joined table whose own order comes before ``order``, if any.
        given: small further tables that ``sql`` reads, by name.
    """

    order: Sequence[str] = ()
    sql: str = "_t AS t"
    keys: Sequence[str] = ()
    joined: Mapping[str, Joined] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    first: str | None = None
    given: Mapping[str, pa.Table] = field(default_factory=dict)


ALONE = View()
"""A table by itself, in the order in which it lies there."""


def table(store: Store, run: Run, round: int, stage: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the whole table of a stage, verified: every byte of its files is compared with what was committed.

    Raises:
        NotCommittedError: the round has no such table.
        DamagedFileError: a file is missing, or is not the one that was committed.
    """
    return read_table(store, files_of(run, round, stage), columns)


def query(
    store: Store,
    run: Run,
    round: int,
    stage: str,
    view: View = ALONE,
    *,
    where: str | None = None,
    prefix: tuple[str, str] | None = None,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
    instead: Mapping[str, Sequence[FileRef]] | None = None,
) -> pa.Table:
    """Returns the rows of the table of a stage, in the order of the view.

    What is read is checked page by page; see ``storage/tables/shards.py``.

    Args:
        where: an SQL expression over the columns.
        prefix: a column, and the characters that its values begin with.
        limit: the largest number of rows.
        columns: the columns to return, of those that there are; all of them by default.
        instead: files to read in place of the round's own, by stage.

    Raises:
        NotCommittedError: the round has no such table.
        QueryError: the expression is wrong; the message has DuckDB's reason and the columns.
        DamagedFileError: a file is missing, or what is read of it is damaged.
    """
    if limit is not None and limit < 0:
        raise QueryError(f"limit {limit} is negative: give the largest number of rows")
    instead = instead or {}
    sources = {"t": Columns(store, instead.get(stage) or files_of(run, round, stage))}
    for alias, other in view.joined.items():
        files = instead.get(other.stage) or run.files(round if other.round is None else other.round, other.stage)
        sources[alias] = Columns(store, files, other.empty)
    shown = {name: ("t", name) for name in sources["t"].schema.names} | dict(view.beside)
    rows = _find(view, sources, shown, where, prefix, limit)
    answer = [name for name in shown if columns is None or name in columns]
    taken = {
        alias: sources[alias].take(
            rows[alias], [column for name in answer for a, column in [shown[name]] if a == alias]
        )
        for alias in sources
    }
    return pa.table({name: taken[alias][column] for name in answer for alias, column in [shown[name]]})


def matching(
    store: Store, files: Sequence[FileRef], column: str, value: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Returns the rows of a table that have this value in a column, in the order in which they lie there.

    Faster than :func:`query` for a few rows, since it asks nothing of DuckDB.

    Args:
        files: those of the table, or some of them.
        columns: the columns to return, of those that there are; all of them by default.

    Raises:
        DamagedFileError: a file is missing, or what is read of it is damaged.
    """
    source = Columns(store, files)
    keys = source.narrow([column])
    rows = keys.filter(pc.equal(keys[column], pa.scalar(value)))[ROW]
    return source.take(rows, [name for name in source.schema.names if columns is None or name in columns])


def files_of(run: Run, round: int, stage: str) -> list[FileRef]:
    """Returns the files of a stage that is a table; NotCommittedError if there are none, or it is no table."""
    files = run.files(round, stage)
    if not files:
        stages = sorted({entry.key.stage for entry in run.entries(round) if entry.key is not None})
        has = f"it has {', '.join(stages)}" if stages else "nothing was committed in it"
        raise NotCommittedError(f"round {round} of run '{run.name}' has no {stage}: {has}")
    if any(file.rows is None for file in files):
        raise NotCommittedError(f"{stage} of round {round} of run '{run.name}' is no table")
    return files


def _find(
    view: View,
    sources: Mapping[str, Columns],
    shown: Mapping[str, tuple[str, str]],
    where: str | None,
    prefix: tuple[str, str] | None,
    limit: int | None,
) -> pa.Table:
    """Finds, for each row of the answer, the number of the row of each source that stands in it."""
    order = [name for name in view.order if shown.get(name, ("", ""))[0] == "t"]
    asked = {prefix[0]} if prefix is not None and prefix[0] in shown else set()
    named = {name for name in shown if _mentions(where, name)} | set(order) | asked
    columns = ", ".join(f'{alias}."{column}" AS "{name}"' for name, (alias, column) in shown.items() if name in named)
    numbers = ", ".join(f"{alias}.{ROW} AS _row_{alias}" for alias in sources)
    keys = {"t": view.keys} | {alias: other.keys for alias, other in view.joined.items()}
    tables = {f"_{alias}": _narrow(source, keys[alias], alias, shown, named) for alias, source in sources.items()}
    with (
        locked_connection({**tables, **view.given}) as connection,
        clear_errors([f"the columns are {', '.join(shown)}"]),
    ):
        rows = connection.sql(f"SELECT {', '.join(filter(None, [columns, numbers]))} FROM {view.sql}")  # noqa: S608
        if prefix is not None:
            arguments = duckdb.ColumnExpression(prefix[0]), duckdb.ConstantExpression(prefix[1])
            rows = rows.filter(duckdb.FunctionExpression("starts_with", *arguments))
        if where is not None:
            rows = rows.filter(where)
        first = [f"_row_{view.first}"] if view.first is not None else []
        rows = rows.order(", ".join(f'"{name}" NULLS LAST' for name in [*first, *order, "_row_t"]))
        if limit is not None:
            rows = rows.limit(limit)
        numbered = rows.project(", ".join(f"_row_{alias}" for alias in sources)).to_arrow_table()
    return numbered.rename_columns(list(sources))


def _narrow(
    source: Columns, keys: Sequence[str], alias: str, shown: Mapping[str, tuple[str, str]], named: set[str]
) -> pa.Table:
    needed = {shown[name][1] for name in named if shown[name][0] == alias}
    return source.narrow([*keys, *needed])


def _mentions(where: str | None, name: str) -> bool:
    """Says whether the expression may mean this column; if in doubt it may, so that no column is missing."""
    text = (where or "").lower()
    return name.lower() in text or "*" in text or "columns" in text
