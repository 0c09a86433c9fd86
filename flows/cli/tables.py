"""Results on standard output, in each of the formats: tables for people, JSON, JSON lines and CSV for machines."""

import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.options import Format
from flows.host.text import visible

Rows = Sequence[Mapping[str, Any]]

_LONGEST_CELL = 160
_NARROWEST_PROSE = 12  # characters; a text in a narrower column is not read
_SHORT_ID = 8
_HEADINGS = {
    "candidate": "completion", "candidates": "completions", "answer_a": "best completion before",
    "answer_b": "best completion after",
}  # fmt: skip
"""What people read in place of a column's name in the store."""
_MARKDOWN_SYNTAX = re.compile(r"([\\`*_\[\]<>|~&])")

# What a person wants to see of a row; the rest is there with --format json.
_READABLE = {
    "candidates": ("prompt_id", "candidate", "score", "finish_reason", "prompt", "text"),
    "judgments": ("prompt_id", "candidate", "judge", "score", "status", "rationale", "prompt", "text"),
    "preferences": ("prompt_id", "kind", "margin", "prompt", "chosen", "rejected", "drop_reason"),
    "replayed": ("prompt_id", "origin_round", "kind", "candidates", "scores", "margin"),
}


def print_rows(
    rows: Rows,
    *,
    title: str = "",
    empty: str = "",
    format: Format = Format.table,
    records: Rows | None = None,
    document: object = None,
    longest: int = _LONGEST_CELL,
) -> None:
    """Print rows; on a terminal that is too narrow for a table, each row is a list.

    Args:
        rows: what people are shown.
        empty: what to say to them if there is no row.
        records: what machines read, a row each; the same rows if it is not given.
        document: what ``--format json`` prints; an array of the records if it is not given.
        longest: characters of a table's cell; what is longer is cut, and ends with an ellipsis.
    """
    records = rows if records is None else records
    if format is Format.json:
        print_json(list(records) if document is None else document)
    elif format is Format.jsonl:
        for record in records:
            print_json(record)
    elif format is Format.csv:
        _print_csv(records)
    elif not rows:
        Console().print(empty, markup=False)
    elif format is Format.markdown:
        _write("\n".join(_markdown(rows)))
    else:
        console = Console()
        cells = [{name: _cell(value, longest) for name, value in row.items()} for row in rows]
        fits = _least_width(rows, cells) <= console.width
        console.print(_table(rows, cells, title, console.width) if fits else _lists(cells, title))


def print_json(value: object) -> None:
    """Print anything as JSON, in one line."""
    _write(json.dumps(value, ensure_ascii=False, default=str))


def readable_columns(table: str) -> tuple[str, ...]:
    """The columns of a round's table that people are shown."""
    return _READABLE[table.removeprefix("eval_")]


def shortened(row: Mapping[str, Any], *hidden: str) -> dict[str, Any]:
    """The row with the beginning of its prompt's id in place of all of it, and without some columns."""
    short = {name: value for name, value in row.items() if name not in hidden}
    return {**short, "prompt_id": row["prompt_id"][:_SHORT_ID]}


def _print_csv(records: Rows) -> None:
    """Print records as CSV with a header; lists and mappings within them are JSON, and what is missing is empty."""
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if names:
        writer.writerow(names)
    for record in records:
        writer.writerow([_csv_cell(record.get(name)) for name in names])


def _csv_cell(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    # A program reads what there is; on a terminal, what a model wrote must not be obeyed.
    return visible(value) if isinstance(value, str) and sys.stdout.isatty() else value


def _markdown(rows: Rows) -> list[str]:
    names = list(rows[0])
    lines = [[_heading(name) for name in names], ["---"] * len(names)]
    lines += [[_markdown_cell(row[name]) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _markdown_cell(value: Any) -> str:
    return _MARKDOWN_SYNTAX.sub(r"\\\1", _cell(value, sys.maxsize)).replace("\n", "<br>")


def _write(text: str) -> None:
    print(text)  # noqa: T201  standard output is the interface


def _table(rows: Rows, cells: Sequence[Mapping[str, str]], title: str, width: int) -> Table:
    """A table; with a rule between rows if a text takes several lines."""
    natural = 1 + sum(max(cell_len(_heading(name)), *(_lines(row[name]) for row in cells)) + 2 for name in rows[0])
    long = natural > width or any("\n" in text for row in cells for text in row.values())
    style = box.HORIZONTALS if long else box.SIMPLE_HEAD
    table = Table(title=Text(title), box=style, show_lines=long, padding=(0, 1, 0, 0), header_style="bold cyan")
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float) for row in rows)
        # Ids and metrics stay whole; texts share what is left of the line.
        prose = _is_prose(rows, name)
        table.add_column(
            Text(_heading(name)), justify="right" if numeric else "left", overflow="fold", no_wrap=not prose,
            min_width=_least_cell(name, cells, prose=prose), style=_column_style(name, numeric=numeric),
        )  # fmt: skip
    for row in cells:
        # Text, not markup: what a model wrote must not colour or hide anything.
        table.add_row(*map(Text, row.values()))
    return table


def _lists(cells: Sequence[Mapping[str, str]], title: str) -> Table:
    """Each row as a list of its columns, one below the other, with a rule between rows."""
    table = Table(title=Text(title), box=box.HORIZONTALS, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold cyan")
    table.add_column(overflow="fold")
    for row in cells:
        for name, text in row.items():
            table.add_row(Text(_heading(name)), Text(text))
        table.add_section()
    return table


def _column_style(name: str, *, numeric: bool) -> str:
    return "green" if numeric else "dim" if name.endswith("_id") else ""


def _heading(name: str) -> str:
    return _HEADINGS.get(name, name)


def _lines(text: str) -> int:
    """The width of the widest line."""
    return max(map(cell_len, text.split("\n")))


def _least_width(rows: Rows, cells: Sequence[Mapping[str, str]]) -> int:
    """Characters of a line that the table needs to cut nothing that is to stay whole."""
    return 1 + sum(_least_cell(name, cells, prose=_is_prose(rows, name)) + 2 for name in rows[0])


def _least_cell(name: str, cells: Sequence[Mapping[str, str]], *, prose: bool) -> int:
    whole = max(cell_len(_heading(name)), *(cell_len(row[name]) for row in cells))
    return min(whole, _NARROWEST_PROSE) if prose else whole


def _is_prose(rows: Rows, name: str) -> bool:
    return any(" " in str(row[name]) for row in rows)


def _cell(value: Any, longest: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = visible(str(value))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
