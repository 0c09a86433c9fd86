"""Questions about the data of rounds, answered by DuckDB over the committed Parquet files.

For people, the tables come joined: candidates with their prompt and judgment, judgments with the candidate's text,
preferences with the texts of the best and the worst candidate. Queries read; the connection can reach neither files
nor network, and its settings are locked.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from storage.errors import DamagedFileError, NotCommittedError, QueryError
from storage.manifest import FileRef
from storage.run import Run
from storage.shards import open_dataset, read_table
from storage.store import Store

_SQL_TABLES = ("candidates", "judgments", "preferences", "prompts", "metrics")

_POSITION = "_position"

# `_table` is the table asked for, `_candidates` and `_judgments` are those of the same round or evaluation, `_position`
# is the order of the prompts. Of several judges, the candidates show the one asked for, so that none appears twice.
_CANDIDATES = """
    SELECT c.*, j.score, j.status, p.prompt, p._position FROM _table AS c
    LEFT JOIN (
        SELECT * FROM _judgments
        WHERE judge = coalesce((SELECT name FROM _judge), (SELECT min(judge) FROM _judgments))
    ) AS j
        USING (prompt_id, candidate)
    LEFT JOIN _prompts AS p USING (prompt_id)"""
_JUDGMENTS = """
    SELECT j.*, c.text, c.finish_reason, p.prompt, p._position FROM _table AS j
    LEFT JOIN _candidates AS c USING (prompt_id, candidate)
    LEFT JOIN _prompts AS p USING (prompt_id)"""
_PREFERENCES = """
    SELECT r.*, best.text AS chosen, worst.text AS rejected, p.prompt, p._position FROM _table AS r
    LEFT JOIN _candidates AS best ON best.prompt_id = r.prompt_id AND best.candidate = r.candidates[1]
    LEFT JOIN _candidates AS worst ON worst.prompt_id = r.prompt_id AND worst.candidate = r.candidates[-1]
    LEFT JOIN _prompts AS p ON p.prompt_id = r.prompt_id"""
_PROMPTS = "SELECT t.*, p._position FROM _table AS t LEFT JOIN _prompts AS p USING (prompt_id)"
_JOINED = {"candidates": _CANDIDATES, "judgments": _JUDGMENTS, "preferences": _PREFERENCES, "prompts": _PROMPTS}

# The columns that the joins need of a stage that was not committed (yet).
_ID = ("prompt_id", pa.string())
_CANDIDATE = ("candidate", pa.int32())
_EMPTY = {
    "candidates": pa.schema([_ID, _CANDIDATE, ("text", pa.string()), ("finish_reason", pa.string())]),
    "judgments": pa.schema([_ID, _CANDIDATE, ("score", pa.float64()), ("status", pa.string()), ("judge", pa.string())]),
    "prompts": pa.schema([_ID, ("text", pa.string())]),
}


def table(store: Store, run: Run, round: int, stage: str) -> pa.Table:
    """The whole table of a stage, verified.

    Raises:
        NotCommittedError: the round has no such table.
        DamagedFileError: a file is missing, or is not the one that was committed.
    """
    return read_table(store, _files(run, round, stage))


def query(
    store: Store,
    run: Run,
    round: int,
    *,
    table: str,
    where: str | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    judge: str | None = None,
) -> pa.Table:
    """The rows of one table of a round, in the order of the prompts and candidates.

    Args:
        table: candidates, judgments or preferences, or one of these with ``eval_`` before it (joined, see above);
            or the name of any other stage that is a table.
        where: an SQL expression over the columns.
        prompt: the first characters of a prompt's id.
        limit: the largest number of rows.
        judge: whose scores stand beside the candidates; the first by name where none is given.

    Raises:
        NotCommittedError: the round has no such table.
        QueryError: the expression is wrong; the message has DuckDB's reason and the columns.
        DamagedFileError: a file is missing or cannot be read.
    """
    if limit is not None and limit < 0:
        raise QueryError(f"limit {limit} is negative: give the largest number of rows")
    with _connection() as connection:
        with _clear_errors([]):
            rows = _rows(connection, store, run, round, table, judge)
        columns = [name for name in rows.columns if name != _POSITION]
        with _clear_errors(columns):
            if prompt is not None:
                matches = duckdb.FunctionExpression(
                    "starts_with", duckdb.ColumnExpression("prompt_id"), duckdb.ConstantExpression(prompt)
                )
                rows = rows.filter(matches)
            if where is not None:
                rows = rows.filter(where)
            order = [name for name in (_POSITION, "prompt_id", "candidate", "judge", "step") if name in rows.columns]
            if order:
                rows = rows.order(", ".join(f"{name} NULLS LAST" for name in order))
            if limit is not None:
                rows = rows.limit(limit)
            return rows.project(", ".join(f'"{name}"' for name in columns)).to_arrow_table()


def select(store: Store, run: Run, sql: str) -> pa.Table:
    """The answer to one SELECT over the tables of all rounds, each with a column ``round``.

    The tables are candidates, judgments, preferences, prompts and metrics, as far as they were committed.

    Raises:
        QueryError: the statement is wrong, is none that reads, or is more than one.
        DamagedFileError: a file is missing or cannot be read.
    """
    with _connection() as connection:
        tables = {}
        for stage in _SQL_TABLES:
            rounds = {
                file.path: number
                for number in sorted({entry.round for entry in run.entries(stage=stage)})
                for file in run.files(number, stage)
            }
            if rounds:
                files = [file for number in sorted(set(rounds.values())) for file in run.files(number, stage)]
                tables[stage] = open_dataset(store, files, rounds=rounds)
                connection.register(stage, tables[stage])
        columns = [f"{stage}.{name}" for stage, dataset in tables.items() for name in dataset.schema.names]
        _lock(connection)
        with _clear_errors(columns):
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise QueryError("give one SELECT statement: the tables of a run are only read")
            return connection.sql(sql).to_arrow_table()


def _files(run: Run, round: int, stage: str) -> list[FileRef]:
    files = run.files(round, stage)
    if not files:
        there = sorted({entry.key.stage for entry in run.entries(round) if entry.key is not None})
        has = f"it has {', '.join(there)}" if there else "nothing was committed in it"
        raise NotCommittedError(f"round {round} of run '{run.name}' has no {stage}: {has}")
    if any(file.rows is None for file in files):
        raise NotCommittedError(f"{stage} of round {round} of run '{run.name}' is no table")
    return files


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(":memory:")
    try:
        yield connection
    finally:
        connection.close()


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    """From here on the connection sees only what was registered."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _rows(
    connection: duckdb.DuckDBPyConnection, store: Store, run: Run, round: int, table: str, judge: str | None
) -> duckdb.DuckDBPyRelation:
    stage = table.removeprefix("eval_")
    prefix = table.removesuffix(stage)
    connection.register("_table", open_dataset(store, _files(run, round, table)))
    for name in ("candidates", "judgments"):
        files = run.files(round, prefix + name)
        connection.register(f"_{name}", open_dataset(store, files) if files else _EMPTY[name].empty_table())
    files = run.files(0, "prompts")
    prompts = (
        read_table(store, files, ["prompt_id", "text"], verify=False) if files else _EMPTY["prompts"].empty_table()
    )
    prompts = prompts.rename_columns(["prompt_id", "prompt"])
    connection.register("_prompts", prompts.append_column(_POSITION, pa.array(range(len(prompts)), pa.int64())))
    connection.register("_judge", pa.table({"name": pa.array([judge], pa.string())}))
    _lock(connection)
    return connection.sql(_JOINED.get(stage, "SELECT * FROM _table"))


@contextmanager
def _clear_errors(columns: list[str]) -> Iterator[None]:
    """Turn DuckDB's errors into those of the store."""
    try:
        yield
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, duckdb.IOException | duckdb.InternalException | duckdb.FatalException):
            raise DamagedFileError(f"a committed file cannot be read: {reason}") from error
        raise QueryError(f"{reason}; the columns are {', '.join(columns)}") from error
