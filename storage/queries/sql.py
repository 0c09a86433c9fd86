"""SQL over all rounds of a run: every committed table, and the metrics of the rounds.

What is read is checked page by page; see ``storage/tables/shards.py``.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from storage.errors import NotCommittedError, QueryError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.duckdb import Limits, clear_errors, locked_connection, within
from storage.tables.datasets import open_dataset

if TYPE_CHECKING:
    import pyarrow.dataset as ds

ROUNDS = "rounds"
"""The table of the rounds' metrics; no stage."""
Opened = Callable[[Store, Mapping[int, Sequence[FileRef]]], "ds.Dataset"]
"""Opens the files of a stage, given by round."""


def open_rounds(store: Store, rounds: Mapping[int, Sequence[FileRef]]) -> "ds.Dataset":
    """Opens the files of a stage, given by round, as one lazy dataset with a column ``round``."""
    of_round = {file.path: number for number, files in rounds.items() for file in files}
    return open_dataset(store, [file for files in rounds.values() for file in files], rounds=of_round)


def select(
    store: Store,
    run: Run,
    sql: str,
    *,
    rows: int | None = None,
    offset: int = 0,
    limits: Limits | None = None,
    opened: Opened = open_rounds,
) -> pa.Table:
    """Answers one SELECT over the tables of all rounds, each with a column ``round``.

    The tables are those of all stages, those of annexes too, under the names of these, and ``rounds``, with a row of
    metrics for each finished round.

    Args:
        rows: the largest number of rows to return; None for all of them.
        offset: rows to leave out before the first that is returned, if ``rows`` is given.
        limits: what the statement may take of the machine.
        opened: opens the files of a stage.

    Raises:
        QueryError: the statement is wrong, does not only read, is more than one, or takes more than it may; if it is
            wrong, the message has DuckDB's reason and the tables and columns that there are.
        DamagedFileError: a file is missing, or what is read of it is damaged.
    """
    files = all_table_files(run)
    names = _asked_for(sql, [*files, ROUNDS])
    tables: dict[str, Any] = {
        name: rounds_table(run) if name == ROUNDS else opened(store, files[name]) for name in names
    }
    with (
        locked_connection(tables, limits) as connection,
        clear_errors(_Description(store, run, files)),
        within(limits, connection),
    ):
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError("give one SELECT statement: the tables of a run are only read")
        found = connection.sql(sql)
        if rows is None:
            return found.to_arrow_table()
        # A limit gives the second of two columns of one name another one.
        return found.limit(rows, offset).to_arrow_table().rename_columns(found.columns)


def columns_of(store: Store, run: Run) -> dict[str, list[str]]:
    """Returns the columns of every table that :func:`select` can ask, by the name of the table."""
    return _columns(store, run, all_table_files(run))


@dataclass(frozen=True)
class Source:
    """A stage that a statement of :func:`ask` reads, over several rounds.

    Attributes:
        stage: its name, which is that of the table.
        rounds: only these rounds; None for all.
        empty: the columns to show if it was not committed in these rounds; None makes that an error.
    """

    stage: str
    rounds: Collection[int] | None = None
    empty: pa.Schema | None = None


def ask(
    store: Store,
    run: Run,
    sql: str,
    sources: Iterable[Source],
    parameters: Mapping[str, Any] | None = None,
    beside: Mapping[str, pa.Table] | None = None,
) -> pa.Table:
    """Answers a statement of a program, over the tables of these stages, each with a column ``round``.

    Args:
        parameters: the values of ``$name`` in the statement.
        beside: other tables that the statement reads, by name.

    Raises:
        NotCommittedError: a stage was not committed, and its columns are not known either.
        DamagedFileError: a file is missing, or what is read of it is damaged.
    """
    tables: dict[str, Any] = {**(beside or {}), **{source.stage: _table(store, run, source) for source in sources}}
    with locked_connection(tables) as connection, clear_errors([]):
        return connection.sql(sql, params=dict(parameters or {})).to_arrow_table()


def all_table_files(run: Run) -> dict[str, dict[int, list[FileRef]]]:
    """Returns the files of every stage of the run and of its annexes that is a table, by stage and ascending round.

    Several annexes may have committed the same stage; a stage of the run itself is the run's alone.
    """
    own, beside = table_files(run), dict[str, dict[int, list[FileRef]]]()
    for annex in map(run.annex, run.annexes):
        for stage, rounds in table_files(annex).items():
            for number, files in rounds.items():
                beside.setdefault(stage, {}).setdefault(number, []).extend(files)
    return {stage: dict(sorted(rounds.items())) for stage, rounds in beside.items()} | own


def table_files(run: Run, stages: Iterable[str] | None = None) -> dict[str, dict[int, list[FileRef]]]:
    """Returns the files of every stage that is a table, or of these stages only, by stage and ascending round."""
    places = {(entry.round, entry.key.stage) for entry in run.entries() if entry.key is not None}
    found: dict[str, dict[int, list[FileRef]]] = {}
    for number, stage in sorted(places):
        files = run.files(number, stage) if stages is None or stage in stages else []
        if files and all(file.rows is not None for file in files):
            found.setdefault(stage, {})[number] = files
    return found


def rounds_table(run: Run) -> pa.Table:
    """Tabulates the metrics of the finished rounds, a row each; nested ones as structs and lists, or else as JSON."""
    rows = [{"round": entry.round, "finished": entry.time} | entry.meta for entry in run.rounds()]
    names = list(dict.fromkeys(["round", "finished", *(name for row in rows for name in row)]))  # also of no round
    return pa.table({name: _metrics([row.get(name) for row in rows]) for name in names})


def _table(store: Store, run: Run, source: Source) -> "pa.Table | ds.Dataset":
    by_round = table_files(run, [source.stage]).get(source.stage, {})
    files = {n: files for n, files in by_round.items() if source.rounds is None or n in source.rounds}
    if files:
        return open_rounds(store, files)
    if source.empty is not None:
        return source.empty.empty_table()
    where = "" if source.rounds is None else f"round {', '.join(map(str, sorted(source.rounds)))} of "
    raise NotCommittedError(f"{where}run '{run.name}' has no {source.stage}")


def _metrics(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except pa.ArrowException:
        array = None
    # DuckDB has no type without fields, and a column of nothing but nulls may be one of numbers in another run.
    if array is not None and not (pa.types.is_struct(array.type) and array.type.num_fields == 0):
        return array.cast(pa.float64()) if pa.types.is_null(array.type) else array
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def _asked_for(sql: str, names: Iterable[str]) -> list[str]:
    """Lists the tables that the statement may mean: each that is opened costs a look at all of its files."""
    text = sql.lower()
    return [name for name in names if name in text]


def _columns(store: Store, run: Run, files: Mapping[str, Mapping[int, Sequence[FileRef]]]) -> dict[str, list[str]]:
    found = {
        name: ["round", *open_dataset(store, rounds[max(rounds)][-1:]).schema.names]
        for name, rounds in sorted(files.items())
    }
    return {**found, ROUNDS: rounds_table(run).column_names}


class _Description(Iterable[str]):
    """The tables and their columns, a line each; made only if an error needs it, since it opens a file of each."""

    def __init__(self, store: Store, run: Run, files: Mapping[str, Mapping[int, Sequence[FileRef]]]) -> None:
        self._store, self._run, self._files = store, run, files

    def __iter__(self) -> Iterator[str]:
        lines = ["the tables and their columns are:"]
        found = _columns(self._store, self._run, self._files)
        lines += [f"{name}: {', '.join(columns)}" for name, columns in found.items()]
        yield "\n  ".join(lines)
