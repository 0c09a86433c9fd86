"""`rondo timeline`: what ran when in a round, on which device, and how much of it was idle."""

from dataclasses import asdict

import typer
from rich.console import Console

from flows.cli import tables
from flows.cli.options import Json, Root, RunAtRound
from flows.registry.catalog import DEFAULT_ROOT, existing_store, run_at_round
from flows.report.timeline import KINDS, Kind, Lane, duration, lane_rows, timeline

app = typer.Typer()
_WIDTH = 48
_MARKS: dict[Kind, str] = {"training": "█", "evaluation": "▒", "hand over": "▲"}
_IDLE = "·"


@app.command("timeline")
def timeline_(source: RunAtRound, root: Root = DEFAULT_ROOT, json: Json = False) -> None:
    """Show where a round's time went: what ran when, on which device, at how many tokens a second."""
    run, number = run_at_round(existing_store(root), source)
    found = timeline(run, [number])
    if json:
        tables.print_json(None if found is None else asdict(found))
        return
    if found is None:
        typer.echo(f"round {number} of run '{run.name}' recorded no times: it was run by an earlier version")
        return
    kinds = {f"{kind}, s" for kind in KINDS}  # as the line of marks shows
    rows = [{name: value for name, value in row.items() if name not in kinds} for row in lane_rows(found)]
    tables.print_rows(rows, title=f"{source}, {found.seconds:.1f} s", as_json=False, empty="")
    console = Console()
    widest = max(len(lane.name) for lane in found.lanes)
    for lane in found.lanes:
        console.print(f"{lane.name:>{widest}} {_bar(lane, found.seconds)}", markup=False, highlight=False)
    marks = ", ".join(f"{mark} {kind}" for kind, mark in _MARKS.items())
    console.print(f"{marks}, {_IDLE} idle", markup=False, highlight=False)
    for cut in found.cuts:
        text = f"cut out at {cut.start:.1f} s: nothing ran for {duration(cut.seconds)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _bar(lane: Lane, seconds: float) -> str:
    """The lane as a line of characters, each the kind that takes most of its stretch."""
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
