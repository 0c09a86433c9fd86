"""Results in the terminal: tables for people, JSON for machines."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.host.text import visible
from flows.registry.round_summary import RoundSummary, row_of
from flows.run.start import Finished

_LONGEST_CELL = 160
_NARROWEST_PROSE = 12  # characters; a text in a narrower column is not read

# What a person wants to see of a row; the rest is there with --json.
_READABLE = {
    "candidates": ("prompt_id", "candidate", "score", "finish_reason", "prompt", "text"),
    "judgments": ("prompt_id", "candidate", "judge", "score", "status", "prompt", "text"),
    "preferences": ("prompt_id", "kind", "margin", "prompt", "chosen", "rejected", "drop_reason"),
    "replayed": ("prompt_id", "origin_round", "kind", "candidates", "scores", "margin"),
}
_SHORT_ID = 8


def print_rows(
    rows: Sequence[Mapping[str, Any]], *, title: str, as_json: bool, empty: str, longest: int = _LONGEST_CELL
) -> None:
    """Rows as a table, or as a JSON array; where the terminal is too narrow for the table, each row as a list.

    Args:
        longest: characters of a cell; what is longer is cut, and ends with an ellipsis.
    """
    if as_json:
        print_json(list(rows))
        return
    console = Console()
    if not rows:
        console.print(empty, markup=False)
        return
    cells = [{name: _cell(value, longest) for name, value in row.items()} for row in rows]
    fits = _least_width(rows, cells) <= console.width
    console.print(_table(rows, cells, title) if fits else _lists(cells, title))


def print_json(value: object) -> None:
    """Anything as JSON, for machines."""
    print(json.dumps(value, ensure_ascii=False, default=str))  # noqa: T201  standard output is the interface


def readable_columns(table: str) -> tuple[str, ...]:
    """The columns of a round's table that people are shown."""
    return _READABLE[table.removeprefix("eval_")]


def print_table(rows: Sequence[Mapping[str, Any]], table: str, source: str, *, as_json: bool) -> None:
    """Rows of a round's table: everything for machines, the readable columns for people."""
    if not as_json:
        rows = [
            {name: row[name][:_SHORT_ID] if name == "prompt_id" else row.get(name) for name in readable_columns(table)}
            for row in rows
        ]
    print_rows(rows, title=f"{table} of {source}", as_json=as_json, empty="no row fits")


def print_rounds(run: str, rounds: Sequence[RoundSummary], *, as_json: bool) -> None:
    """One row a round; with its alarms below."""
    if as_json:
        print_rows([summary.model_dump(mode="json") for summary in rounds], title=run, as_json=True, empty="")
        return
    print_rows(
        [row_of(summary) for summary in rounds], title=f"Run {run}", as_json=False, empty="no round is finished yet"
    )
    console = Console()
    judges = list(dict.fromkeys(summary.judge for summary in rounds))
    if len(judges) > 1:
        console.print(f"rewards do not compare across judges: {', then '.join(judges)}", markup=False, style="yellow")
    for summary in rounds:
        for alarm in summary.alarms:
            console.print(f"alarm in round {summary.round}: {alarm}", markup=False, style="yellow")


def print_finished(finished: Finished) -> None:
    """What a run came to: its table and its report."""
    print_rounds(finished.run, finished.rounds, as_json=False)
    console = Console()
    console.print(finished.message, markup=False, soft_wrap=True)
    if finished.report is not None:
        console.print(f"report: {finished.report}", markup=False, soft_wrap=True)


def _table(rows: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, str]], title: str) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float) for row in rows)
        # Ids and metrics stay whole; texts share what is left of the line.
        prose = _is_prose(rows, name)
        table.add_column(
            Text(name), justify="right" if numeric else "left", overflow="fold", no_wrap=not prose,
            min_width=_least_cell(name, cells, prose=prose),
        )  # fmt: skip
    for row in cells:
        # Text, not markup: what a model wrote must not colour or hide anything.
        table.add_row(*map(Text, row.values()))
    return table


def _lists(cells: Sequence[Mapping[str, str]], title: str) -> Table:
    """Each row as a list of its columns, one below the other."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for row in cells:
        for name, text in row.items():
            table.add_row(Text(name), Text(text))
        table.add_section()
    return table


def _least_width(rows: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, str]]) -> int:
    """Characters of a line that the table needs to cut nothing that is to stay whole."""
    return 1 + sum(_least_cell(name, cells, prose=_is_prose(rows, name)) + 2 for name in rows[0])


def _least_cell(name: str, cells: Sequence[Mapping[str, str]], *, prose: bool) -> int:
    whole = max(cell_len(name), *(cell_len(row[name]) for row in cells))
    return min(whole, _NARROWEST_PROSE) if prose else whole


def _is_prose(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(" " in str(row[name]) for row in rows)


def _cell(value: Any, longest: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = visible(str(value))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
