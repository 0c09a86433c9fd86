"""`rondo timeline`: what ran when in a round, on which device, and how much of it was idle."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from flows.cli import tables
from flows.cli.options import Commands, Format, Output, Root, RunAtRound
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.report.timeline import Kind, Lane

app = Commands("Look into runs")
_WIDTH = 48
_MARKS: dict["Kind", str] = {"training": "█", "evaluation": "▒", "weight sync": "▲"}
_IDLE = "·"


@app.command("timeline")
def timeline_(source: RunAtRound, root: Root = DEFAULT_ROOT, format: Output = Format.table) -> None:
    """Show where a round's time went: what ran when, on which device, at how many tokens a second."""
    from flows.registry.catalog import existing_store, run_at_round
    from flows.report.timeline import KINDS, duration, lane_rows, timeline

    run, number = run_at_round(existing_store(root), source)
    found = timeline(run, [number])
    if found is None and format is Format.json:
        tables.print_json(None)
        return
    if found is None:
        typer.echo(f"round {number} of run '{run.name}' recorded no times: it was run by an earlier version")
        return
    kinds = {f"{kind}, s" for kind in KINDS}  # as the line of marks shows
    rows = [{name: value for name, value in row.items() if name not in kinds} for row in lane_rows(found)]
    title = f"{run.name}@{number}, {found.seconds:.1f} s"
    tables.print_rows(rows, title=title, format=format, records=lane_rows(found), document=asdict(found))
    if not format.is_for_people:
        return
    console = Console()
    widest = max(len(lane.name) for lane in found.lanes)
    for lane in found.lanes:
        console.print(f"{lane.name:>{widest}} {_bar(lane, found.seconds)}", markup=False, highlight=False)
    marks = ", ".join(f"{mark} {kind}" for kind, mark in _MARKS.items())
    console.print(f"{marks}, {_IDLE} idle", markup=False, highlight=False)
    for cut in found.cuts:
        text = f"cut out at {cut.start:.1f} s: nothing ran for {duration(cut.seconds)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _bar(lane: "Lane", seconds: float) -> str:
    """Draws a lane as a line of characters, each the kind that takes most of its stretch, or idle."""
    from flows.report.timeline import KINDS

    step = seconds / _WIDTH or 1.0
    line = ""
    for place in range(_WIDTH):
        start, end = place * step, (place + 1) * step
        worked = {
            kind: sum(max(0.0, min(span.end, end) - max(span.start, start)) for span in lane.spans if span.kind == kind)
            for kind in KINDS
        }
        kind = max(KINDS, key=lambda kind: worked[kind])
        line += _MARKS[kind] if worked[kind] > 0.25 * step else _IDLE
    return line
