"""Questions in SQL over a run's committed tables: saved ones and one's own, answered as a table or as a chart."""

import atexit
import json
import re
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa

from flows.host.text import visible
from flows.report.sections import Figure
from flows.view.answer_values import rows_of_answer
from flows.view.charts import ERROR, answer_chart
from flows.view.questions import Form, questions_for
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.tables import KINDS
from flows.view.terminal import root_option
from pipeline.errors import ConfigError
from storage.errors import QueryError
from storage.queries.apart import SelectProcess
from storage.queries.duckdb import Limits
from storage.queries.sql import columns_of

LIMITS = Limits(seconds=20, memory=1_000_000_000)
"""Of one question: a run may be at work on the same machine."""
PAGE_ROWS = 100
MOST_POINTS = 5_000
LONGEST = 10_000
"""Letters of a question."""
_MOST_CELLS = 3_000
_PAGE_LETTERS = 120_000
"""Of all cells of a page together. Escaping makes a letter into five bytes at most, so a page stays below 1 MB."""
_CELL_LETTERS = 400

_MOST_WAITING = 2
"""Questions that wait for their turn: each holds a thread of those that answer all pages."""

_process = SelectProcess()
_one_at_a_time = threading.Lock()
_places = threading.BoundedSemaphore(1 + _MOST_WAITING)
atexit.register(_process.close)


class _BusyError(ConfigError):
    """Too many questions wait already."""


@dataclass(frozen=True)
class Target:
    """The page that a value leads to: what its address is made of."""

    parts: Sequence[object]
    query: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A value of the answer, and where it leads.

    Attributes:
        text: None for null.
    """

    text: str | None
    number: bool = False
    target: Target | None = None


def page(opened: OpenRun, sql: str = "", form: Form = "table", offset: int = 0) -> Page:
    """Answers a question, or shows those that there are; what is wrong with one stands on its page.

    Args:
        offset: rows of the answer that come before those that are shown.
    """
    sql = sql.strip().rstrip(";").rstrip()
    values: dict[str, Any] = {
        "sql": sql,
        "form": form,
        "questions": [],
        "columns": {},
        "problem": None,
        "status": 200,
        "figure": None,
        "rows": None,
        "limits": LIMITS,
        "command": f"rondo sql {shlex.quote(opened.name)} {shlex.quote(sql)}{root_option(opened.store)}",
    }
    try:
        values["columns"] = columns_of(opened.store, opened.run)
        values["questions"] = list(questions_for(values["columns"]))
        if sql:
            values |= _answer(opened, sql, form, offset)
        else:
            _get_ready()
    except (ConfigError, QueryError) as error:
        values |= {"problem": str(error), "status": 503 if isinstance(error, _BusyError) else 400}
    return Page("ask.html.j2", f"Ask {opened.name}", values, run=opened.name, tab="Ask")


def _get_ready() -> None:
    """Starts the process that answers, if it is not at work, while people read the questions."""
    if _one_at_a_time.acquire(blocking=False):
        try:
            _process.start()
        finally:
            _one_at_a_time.release()


def _answer(opened: OpenRun, sql: str, form: Form, offset: int) -> dict[str, Any]:
    if len(sql) > LONGEST:
        raise ConfigError(f"the statement has {len(sql):,} letters, more than {LONGEST:,}: ask it with 'rondo sql'")
    most = PAGE_ROWS if form == "table" else MOST_POINTS
    table = _select(opened, sql, most + 1, offset if form == "table" else 0)
    names = table.column_names
    if form != "table" and table.num_rows:
        rows = rows_of_answer(table.slice(0, most))
        caption = _caption(names) + (f" Only the first {most:,} rows are drawn." if table.num_rows > most else "")
        return {"figure": Figure("Answer", caption, answer_chart(names, rows, form)), "by_round": names[0] == "round"}
    shown = max(1, min(PAGE_ROWS, _MOST_CELLS // max(len(names), 1)))
    rows = rows_of_answer(table.slice(0, shown))
    letters = min(_CELL_LETTERS, _PAGE_LETTERS // max(len(rows) * len(names), 1))
    links = _Links(opened.name, names, _kind_of(sql))
    return {
        "names": names,
        "rows": [_cells(row, letters, links) for row in rows],
        "first": offset + 1,
        "last": offset + len(rows),
        "letters": letters,
        "more": offset + shown if table.num_rows > shown else None,
        "before": max(offset - shown, 0) if offset else None,
    }


def _caption(names: Sequence[str]) -> str:
    colour = next((name for name in names[2:] if name != ERROR), None)
    coloured = f", coloured by {colour}" if colour is not None else ""
    interval = " Intervals are 95%: 1.96 standard errors." if ERROR in names[2:] else ""
    return f"{names[1] if len(names) > 1 else names[0]} by {names[0]}{coloured}.{interval}"


def _select(opened: OpenRun, sql: str, rows: int, offset: int) -> pa.Table:
    with _turn():
        return _process.select(
            opened.store, opened.run, sql, rows=rows, offset=offset, letters=_CELL_LETTERS + 1, limits=LIMITS
        )


@contextmanager
def _turn() -> Iterator[None]:
    """Waits until no other question is being answered."""
    if not _places.acquire(blocking=False):
        raise _BusyError(f"{1 + _MOST_WAITING} questions are being answered or wait already: ask again in a moment")
    try:
        with _one_at_a_time:
            yield
    finally:
        _places.release()


def _kind_of(sql: str) -> str:
    """Guesses what the completions of an answer were sampled for, from the tables that the question names."""
    return next(
        (kind for kind, prefix in KINDS.items() if prefix and re.search(rf"\b{prefix}", sql.lower())), "training"
    )


@dataclass(frozen=True)
class _Links:
    """Where the values of a row lead: its columns round, prompt_id and candidate say which prompt it is about."""

    run: str
    names: Sequence[str]
    kind: str

    def of(self, row: Sequence[Any]) -> Mapping[str, Target]:
        """Returns the pages by the name of the column."""
        known = dict(zip(self.names, row, strict=True))
        number, prompt, candidate = (known.get(name) for name in ("round", "prompt_id", "candidate"))
        said = known.get("kind")
        kind = said if isinstance(said, str) and said in KINDS else self.kind
        number = number if isinstance(number, int) else None
        if not isinstance(prompt, str):
            return {"round": Target(("run", self.run, "round", number))} if number is not None else {}
        if number is None:
            return {"prompt_id": Target(("run", self.run, "prompt", prompt))}
        found = Target(("run", self.run, "prompt", prompt), {"round": number, "kind": kind})
        links = {"round": found, "prompt_id": found}
        if isinstance(candidate, int):
            links["candidate"] = Target(("run", self.run, "tokens", number, kind, prompt, candidate))
        return links


def _cells(row: Sequence[Any], letters: int, links: _Links) -> list[Cell]:
    targets = links.of(row)
    return [
        Cell(_text(value, letters), isinstance(value, int | float | Decimal), targets.get(name))
        for name, value in zip(links.names, row, strict=True)
    ]


def _text(value: Any, letters: int) -> str | None:
    if value is None:
        return None
    text = visible((value if isinstance(value, str) else _plain(value))[: letters + 1])
    return text if len(text) <= letters else f"{text[:letters]}…"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else str(value)
