"""Columns of a run's committed tables, held in memory and kept current: for a page that asks many small questions.

A statement of ``sql.py`` opens all files of its stages each time. Here a file is read when it is first seen, and what
is read of it is checked page by page. Which columns are held, and what follows from them, is for the caller to say.

A file that is damaged, or missing, is left out, and so said; it is tried again after a while.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import DamagedFileError, DroppedFileError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.duckdb import Limits, clear_errors, locked_connection, within
from storage.queries.sql import open_rounds, table_files

Tables = Mapping[str, pa.Table]
_LIMITS = Limits(seconds=20, memory=4_000_000_000)
"""Of one question: all others about the run wait for it."""
AGAIN_SECONDS = 30.0
"""After these a file that could not be read is tried again."""


@dataclass(frozen=True)
class Held:
    """A table that is held in memory.

    Attributes:
        selects: by stage, the SELECT that makes its rows of ``committed``, the files of that stage in one round.
        optional: columns that files of an older version may lack; they are null there.
        empty: its columns, for a run that has committed none of these stages.
    """

    selects: Mapping[str, str]
    empty: pa.Schema
    optional: pa.Schema = field(default_factory=lambda: pa.schema([]))


@dataclass(frozen=True)
class _Damage:
    """A file of a stage in a round that cannot be read, and why."""

    stage: str
    round: int
    reason: str


class MemoryTables:
    """The tables of a run in memory; threads may share them.

    Args:
        held: what is read of the committed files, by the name of the table.
        derived: what follows from it, by the name of the table: a SELECT over the held tables that gives a
            column ``round``, and whose rows of a round follow from those of that round.
        beside: further tables that these SELECTs read.
        common: the held tables that hold for all rounds; a SELECT has all of their rows.

    Attributes:
        run: the run, as its log was at the last :meth:`refresh`.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        held: Mapping[str, Held],
        derived: Mapping[str, str],
        beside: Tables | None = None,
        common: Collection[str] = (),
    ) -> None:
        self.run = run
        self._store, self._held, self._derived, self._common = store, held, derived, common
        self._beside = dict(beside or {})
        self._paths: dict[tuple[str, int], list[str]] = {}
        self._read_rows = {
            (name, stage): table.empty.empty_table() for name, table in held.items() for stage in table.selects
        }
        self._tables: Tables = {}
        self._changed: set[int] = set()
        self._damaged: dict[str, _Damage] = {}
        self._again = 0.0
        self._open = ExitStack()
        self._lock = threading.Lock()

    @property
    def damaged(self) -> dict[str, str]:
        """Returns the files that are left out, by path, and what is wrong with each."""
        return {path: damage.reason for path, damage in list(self._damaged.items())}

    def refresh(self) -> None:
        """Reads what was committed since, and what could not be read before; what is :attr:`damaged` is left out."""
        with self._lock:
            self.run.refresh()
            if self._damaged and time.monotonic() >= self._again:
                for damage in self._damaged.values():
                    self._paths.pop((damage.stage, damage.round), None)
            stages = {stage for _, stage in self._read_rows}
            for stage, rounds in table_files(self.run, stages).items():
                paths = {number: [file.path for file in files] for number, files in rounds.items()}
                new = {n: rounds[n] for n, of_round in paths.items() if self._paths.get((stage, n)) != of_round}
                if new:
                    self._read(stage, new)
                    self._paths |= {(stage, number): paths[number] for number in new}
                    self._changed |= new.keys()
            if self._changed or not self._tables:
                self._derive(self._changed)
                self._changed = set()

    def ask(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Answers a SELECT over what is in memory since the last :meth:`refresh`: a dict for each row.

        Raises:
            QueryError: the statement is wrong, or takes more than it may.
        """
        with self._lock, clear_errors([]), within(_LIMITS, self._connection):
            rows = self._connection.sql(sql, params=dict(parameters or {}))
            return [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]

    def close(self) -> None:
        """Lets go of the memory."""
        with self._lock:
            self._open.close()

    def _read(self, stage: str, rounds: Mapping[int, Sequence[FileRef]]) -> None:
        """Reads a stage in these rounds, in place of what was read of it in them."""
        others = {path: d for path, d in self._damaged.items() if d.stage != stage or d.round not in rounds}
        self._damaged = others
        for name, table in self._held.items():
            if stage in table.selects:
                kept = _without(self._read_rows[name, stage], rounds)
                self._read_rows[name, stage] = pa.concat_tables([kept, self._rows(table, stage, rounds)])

    def _rows(self, table: Held, stage: str, rounds: Mapping[int, Sequence[FileRef]]) -> pa.Table:
        there = {number: files for number, files in rounds.items() if not _dropped(self.run, files)}
        if not there:
            return table.empty.empty_table()
        try:
            return self._rows_of(table, stage, there)
        except DamagedFileError:
            return pa.concat_tables([table.empty.empty_table(), *self._intact_rows(table, stage, there)])

    def _intact_rows(self, table: Held, stage: str, rounds: Mapping[int, Sequence[FileRef]]) -> Iterator[pa.Table]:
        """Reads the files one by one, and notes those that cannot be read."""
        for number, files in rounds.items():
            for file in files:
                try:
                    yield self._rows_of(table, stage, {number: [file]})
                except DamagedFileError as error:
                    self._damaged[file.path] = _Damage(stage, number, str(error).removeprefix(f"{file.path} "))
                    self._again = time.monotonic() + AGAIN_SECONDS

    def _rows_of(self, table: Held, stage: str, rounds: Mapping[int, Sequence[FileRef]]) -> pa.Table:
        sources: dict[str, Any] = {"committed": open_rounds(self._store, rounds)}
        sql = table.selects[stage]
        if table.optional.names:
            sources = {"_files": sources["committed"], "_optional": table.optional.empty_table()}
            sql = f"WITH committed AS (FROM _files UNION ALL BY NAME FROM _optional) {sql}"
        return _select(sources, sql).cast(table.empty)

    def _derive(self, changed: Collection[int]) -> None:
        """Makes the derived rows of these rounds again."""
        whole = {
            name: pa.concat_tables(self._read_rows[name, stage] for stage in table.selects)
            for name, table in self._held.items()
        }
        of_changed = {n: t if n in self._common else t.filter(_in(t, changed)) for n, t in whole.items()}
        derived = {name: _select(of_changed | self._beside, sql) for name, sql in self._derived.items()}
        before = {name: [_without(self._tables[name], changed)] if self._tables else [] for name in derived}
        tables = whole | {name: pa.concat_tables([*before[name], table]) for name, table in derived.items()}
        opened = ExitStack()
        self._connection = opened.enter_context(locked_connection(tables, _LIMITS))
        self._open.close()
        self._tables, self._open = tables, opened


def _in(table: pa.Table, rounds: Collection[int]) -> pa.ChunkedArray:
    return pc.is_in(table["round"], value_set=pa.array(sorted(rounds), pa.int32()))


def _without(table: pa.Table, rounds: Collection[int]) -> pa.Table:
    return table.filter(pc.invert(_in(table, rounds)))


def _dropped(run: Run, files: Sequence[FileRef]) -> bool:
    """Says whether the run has given these files up on purpose: then there is nothing to show."""
    try:
        run.check_kept(files)
    except DroppedFileError:
        return True
    return False


def _select(tables: Mapping[str, Any], sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
    with locked_connection(tables, large=True) as connection, clear_errors([]):
        return connection.sql(sql, params=dict(parameters or {})).to_arrow_table()
