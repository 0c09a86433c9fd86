"""Questions about the data of one round, as people ask them.

The tables come joined: candidates with their prompt and judgment, judgments with the candidate's text, preferences
with the texts of the best and the worst candidate. DuckDB finds the rows that are asked for from the columns that the
question names; the other columns are read of those rows alone. A question reads: see ``storage/queries/duckdb.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from storage.errors import NotCommittedError, QueryError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.duckdb import clear_errors, locked_connection
from storage.tables.columns import ROW, Columns
from storage.tables.shards import read_table


@dataclass(frozen=True)
class _Join:
    """How a table is shown.

    Attributes:
        sql: the tables and their joins: ``t`` is the table itself, ``c``, ``best`` and ``worst`` candidates, ``j``
            judgments, ``p`` prompts, of the same round or evaluation.
        tables: the stage of each.
        keys: the columns that joins and order need of each.
        beside: what stands beside the table's own columns, as name: (table, column).
    """

    sql: str
    tables: Mapping[str, str]
    keys: Mapping[str, Sequence[str]]
    beside: Mapping[str, tuple[str, str]]


_PAIR = ("prompt_id", "candidate")
# Of several judges, the candidates show the one asked for, so that none appears twice.
_CANDIDATES = _Join(
    """_t AS t LEFT JOIN (
        SELECT * FROM _j WHERE judge = coalesce((SELECT name FROM _judge), (SELECT min(judge) FROM _j))
    ) AS j ON j.prompt_id = t.prompt_id AND j.candidate = t.candidate LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id""",
    {"j": "judgments", "p": "prompts"},
    {"t": _PAIR, "j": (*_PAIR, "judge"), "p": ("prompt_id",)},
    {"score": ("j", "score"), "status": ("j", "status"), "prompt": ("p", "text")},
)
_JUDGMENTS = _Join(
    """_t AS t LEFT JOIN _c AS c ON c.prompt_id = t.prompt_id AND c.candidate = t.candidate
    LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id""",
    {"c": "candidates", "p": "prompts"},
    {"t": (*_PAIR, "judge"), "c": _PAIR, "p": ("prompt_id",)},
    {"text": ("c", "text"), "finish_reason": ("c", "finish_reason"), "prompt": ("p", "text")},
)
_PREFERENCES = _Join(
    """_t AS t
    LEFT JOIN _best AS best ON best.prompt_id = t.prompt_id AND best.candidate = t.candidates[1]
    LEFT JOIN _worst AS worst ON worst.prompt_id = t.prompt_id AND worst.candidate = t.candidates[-1]
    LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id""",
    {"best": "candidates", "worst": "candidates", "p": "prompts"},
    {"t": ("prompt_id", "candidates"), "best": _PAIR, "worst": _PAIR, "p": ("prompt_id",)},
    {"chosen": ("best", "text"), "rejected": ("worst", "text"), "prompt": ("p", "text")},
)
_PROMPTS = _Join(
    "_t AS t LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id",
    {"p": "prompts"}, {"t": ("prompt_id",), "p": ("prompt_id",)}, {},
)  # fmt: skip
_ALONE = _Join("_t AS t", {}, {"t": ()}, {})
_JOINS = {"candidates": _CANDIDATES, "judgments": _JUDGMENTS, "preferences": _PREFERENCES, "prompts": _PROMPTS}
_ORDER = ("prompt_id", "candidate", "judge", "step")

# The columns of a stage that was not committed (yet).
_ID = ("prompt_id", pa.string())
_CANDIDATE = ("candidate", pa.int32())
_EMPTY = {
    "candidates": pa.schema([_ID, _CANDIDATE, ("text", pa.string()), ("finish_reason", pa.string())]),
    "judgments": pa.schema([_ID, _CANDIDATE, ("score", pa.float64()), ("status", pa.string()), ("judge", pa.string())]),
    "prompts": pa.schema([_ID, ("text", pa.string())]),
}


def table(store: Store, run: Run, round: int, stage: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table of a stage, verified: every byte of its files is compared with what was committed.

    Raises:
        NotCommittedError: the round has no such table.
        DamagedFileError: a file is missing, or is not the one that was committed.
    """
    return read_table(store, files_of(run, round, stage), columns)


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
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The rows of one table of a round, in the order of the prompts and candidates.

    What is read is checked page by page; see ``storage/tables/shards.py``.

    Args:
        table: candidates, judgments or preferences, or one of these with ``eval_`` before it (joined, see above);
            or the name of any other stage that is a table.
        where: an SQL expression over the columns.
        prompt: the first characters of a prompt's id.
        limit: the largest number of rows.
        judge: whose scores stand beside the candidates; the first by name where none is given.
        columns: the columns to answer with, those that there are; all where none are given.

    Raises:
        NotCommittedError: the round has no such table.
        QueryError: the expression is wrong; the message has DuckDB's reason and the columns.
        DamagedFileError: a file is missing, or what is read of it is damaged.
    """
    if limit is not None and limit < 0:
        raise QueryError(f"limit {limit} is negative: give the largest number of rows")
    stage = table.removeprefix("eval_")
    join = _JOINS.get(stage, _ALONE)
    sources = {"t": Columns(store, files_of(run, round, table))}
    for alias, name in join.tables.items():
        files = run.files(0, name) if name == "prompts" else run.files(round, table.removesuffix(stage) + name)
        sources[alias] = Columns(store, files, _EMPTY[name])
    shown = {name: ("t", name) for name in sources["t"].schema.names} | dict(join.beside)
    rows = _find(join, sources, shown, where, prompt, limit, judge)
    answer = [name for name in shown if columns is None or name in columns]
    taken = {
        alias: sources[alias].take(
            rows[alias], [column for name in answer for a, column in [shown[name]] if a == alias]
        )
        for alias in sources
    }
    return pa.table({name: taken[alias][column] for name in answer for alias, column in [shown[name]]})


def files_of(run: Run, round: int, stage: str) -> list[FileRef]:
    """The files of a stage that is a table; NotCommittedError where it is none, naming the stages that there are."""
    files = run.files(round, stage)
    if not files:
        there = sorted({entry.key.stage for entry in run.entries(round) if entry.key is not None})
        has = f"it has {', '.join(there)}" if there else "nothing was committed in it"
        raise NotCommittedError(f"round {round} of run '{run.name}' has no {stage}: {has}")
    if any(file.rows is None for file in files):
        raise NotCommittedError(f"{stage} of round {round} of run '{run.name}' is no table")
    return files


def _find(
    join: _Join,
    sources: Mapping[str, Columns],
    shown: Mapping[str, tuple[str, str]],
    where: str | None,
    prompt: str | None,
    limit: int | None,
    judge: str | None,
) -> pa.Table:
    """The number of the row of each source that stands in each row of the answer."""
    order = [name for name in _ORDER if shown.get(name, ("", ""))[0] == "t"]
    named = {name for name in shown if _mentions(where, name)} | set(order)
    columns = ", ".join(f'{alias}."{column}" AS "{name}"' for name, (alias, column) in shown.items() if name in named)
    numbers = ", ".join(f"{alias}.{ROW} AS _row_{alias}" for alias in sources)
    tables = {f"_{alias}": _narrow(source, join, alias, shown, named) for alias, source in sources.items()}
    tables["_judge"] = pa.table({"name": pa.array([judge], pa.string())})
    with locked_connection(tables) as connection, clear_errors([f"the columns are {', '.join(shown)}"]):
        rows = connection.sql(f"SELECT {', '.join(filter(None, [columns, numbers]))} FROM {join.sql}")  # noqa: S608
        if prompt is not None:
            arguments = duckdb.ColumnExpression("prompt_id"), duckdb.ConstantExpression(prompt)
            rows = rows.filter(duckdb.FunctionExpression("starts_with", *arguments))
        if where is not None:
            rows = rows.filter(where)
        first = ["_row_p"] if "p" in sources else []
        rows = rows.order(", ".join(f'"{name}" NULLS LAST' for name in [*first, *order, "_row_t"]))
        if limit is not None:
            rows = rows.limit(limit)
        found = rows.project(", ".join(f"_row_{alias}" for alias in sources)).to_arrow_table()
    return found.rename_columns(list(sources))


def _narrow(
    source: Columns, join: _Join, alias: str, shown: Mapping[str, tuple[str, str]], named: set[str]
) -> pa.Table:
    needed = {shown[name][1] for name in named if shown[name][0] == alias}
    return source.narrow([*join.keys[alias], *needed])


def _mentions(where: str | None, name: str) -> bool:
    """Whether the expression may mean this column: too many are read rather than one too few."""
    text = (where or "").lower()
    return name.lower() in text or "*" in text or "columns" in text
