"""Results on standard output, in each of the formats: tables for people, JSON, JSON lines and CSV for machines."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.options import Format
from flows.host.text import visible

Rows = Sequence[Mapping[str, Any]]

_LINES = 6
"""Lines of a text in a table, if it is not shown in full."""
_LONGEST_WORD = 80
"""Characters; what is longer counts as prose even without a space, as in Chinese."""
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
    full: bool = False,
) -> None:
    """Prints rows; on a terminal that is too narrow for a table, each row is a list.

    Args:
        rows: what people are shown.
        empty: what to say to them if there is no row.
        records: what machines read, a row each; the same rows if it is not given.
        document: what ``--format json`` prints; an array of the records if it is not given.
        full: whether to cut nothing; else a table shows a few lines of a text, and an ellipsis for the rest.
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
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        fits = _least_width(rows, cells) <= console.width
        if not full:
            cells = _cut(rows, cells, _text_width(rows, cells, console.width, as_table=fits))
        console.print(_table(rows, cells, title, console.width) if fits else _lists(cells, title))


def print_json(value: object) -> None:
    """Prints anything as JSON, in one line."""
    _write(json.dumps(value, ensure_ascii=False, default=str))


def readable_columns(table: str) -> tuple[str, ...]:
    """Returns the columns of a round's table that people are shown."""
    return _READABLE[table.removeprefix("eval_").removeprefix("served_").removeprefix("gate_")]


def shortened(row: Mapping[str, Any], *hidden: str) -> dict[str, Any]:
    """Returns the row without some columns, and with its prompt's id cut to the beginning."""
    short = {name: value for name, value in row.items() if name not in hidden}
    return {**short, "prompt_id": row["prompt_id"][:_SHORT_ID]}


def _print_csv(records: Rows) -> None:
    """Prints records as CSV with a header; lists and mappings within them are JSON, and what is missing is empty."""
    import csv

    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if names:
        writer.writerow(names)
    for record in records:
        writer.writerow([_csv_cell(record.get(name)) for name in names])


def _csv_cell(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    # A program reads the text as it is; a terminal must not obey what a model wrote.
    return visible(value) if isinstance(value, str) and sys.stdout.isatty() else value


def _markdown(rows: Rows) -> list[str]:
    names = list(rows[0])
    lines = [[_heading(name) for name in names], ["---"] * len(names)]
    lines += [[_markdown_cell(row[name]) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _markdown_cell(value: Any) -> str:
    return _MARKDOWN_SYNTAX.sub(r"\\\1", _cell(value)).replace("\n", "<br>")


def _write(text: str) -> None:
    print(text)  # noqa: T201  standard output is the interface


def _table(rows: Rows, cells: Sequence[Mapping[str, str]], title: str, width: int) -> Table:
    """Makes a table of the rows, with a rule between them if a text takes several lines."""
    natural = 1 + sum(max(cell_len(_heading(name)), *(_lines(row[name]) for row in cells)) + 2 for name in rows[0])
    long = natural > width or any("\n" in text for row in cells for text in row.values())
    style = box.HORIZONTALS if long else box.SIMPLE_HEAD
    table = Table(title=Text(title), box=style, show_lines=long, padding=(0, 1, 0, 0), header_style="bold cyan")
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float) for row in rows)
        # Ids and metrics are not cut; texts share the rest of the line.
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
    """Makes a list of each row's columns, one below the other, with a rule between rows."""
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
    """Returns the width of the widest line."""
    return max(map(cell_len, text.split("\n")))


def _least_width(rows: Rows, cells: Sequence[Mapping[str, str]]) -> int:
    """Counts the characters of a line that the table needs, so that only texts are cut."""
    return 1 + sum(_least_cell(name, cells, prose=_is_prose(rows, name)) + 2 for name in rows[0])


def _least_cell(name: str, cells: Sequence[Mapping[str, str]], *, prose: bool) -> int:
    whole = max(cell_len(_heading(name)), *(cell_len(row[name]) for row in cells))
    return min(whole, _NARROWEST_PROSE) if prose else whole


def _text_width(rows: Rows, cells: Sequence[Mapping[str, str]], width: int, *, as_table: bool) -> int:
    """Counts the characters of a line that a text gets: in a table the texts share what the other columns leave."""
    if not as_table:
        return width - max(cell_len(_heading(name)) for name in rows[0]) - 3
    texts = [name for name in rows[0] if _is_prose(rows, name)]
    others = sum(_least_cell(name, cells, prose=False) + 2 for name in rows[0] if name not in texts)
    return max(_NARROWEST_PROSE, (width - 1 - others) // max(len(texts), 1) - 2)


def _cut(rows: Rows, cells: Sequence[Mapping[str, str]], width: int) -> list[dict[str, str]]:
    """Cuts each text to its first lines; a prompt also keeps its last ones, as its end may be what it asks."""
    texts = {name for name in rows[0] if _is_prose(rows, name)}
    return [
        {name: shorten(text, width, keep_end=name == "prompt") if name in texts else text for name, text in row.items()}
        for row in cells
    ]


def shorten(text: str, width: int, *, keep_end: bool = False) -> str:
    """Cuts a text to its first lines, and, to keep its end, the last ones, with an ellipsis for what is left out."""
    if sum(len(_pieces(line, width)) for line in text.split("\n")) <= _LINES:
        return text
    after = _LINES // 2 if keep_end else 0
    end = _first_lines(text[::-1], width, after)[::-1] if after else ""
    return f"{_first_lines(text, width, _LINES - after)[:-1].rstrip()}…{end}"


def _first_lines(text: str, width: int, count: int) -> str:
    taken = []
    for line in text.split("\n"):
        pieces = _pieces(line, width)
        taken.append("".join(pieces[:count]))
        count -= len(pieces)
        if count <= 0:
            break
    return "\n".join(taken)


def _pieces(line: str, width: int) -> list[str]:
    """Splits a line into those that it takes at least: it may break earlier, between words."""
    return chop_cells(line, width) or [""]


def _is_prose(rows: Rows, name: str) -> bool:
    return any(" " in str(row[name]) or len(str(row[name])) > _LONGEST_WORD for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(str(value))
