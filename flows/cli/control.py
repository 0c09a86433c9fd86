"""The commands that stop a run: cancel and pause."""

from typing import Annotated

import typer

from flows.cli.options import Root, RunName
from flows.registry.catalog import DEFAULT_ROOT
from flows.run import stop

app = typer.Typer()

Patience = Annotated[float, typer.Option("--wait", min=1, metavar="SECONDS", help="how long to wait for the end")]


@app.command()
def cancel(run: RunName, root: Root = DEFAULT_ROOT, wait: Patience = 120) -> None:
    """End a run that is being executed, in order: its workers end, what is committed stays."""
    typer.echo(stop.cancel(run, root, wait))


@app.command()
def pause(run: RunName, root: Root = DEFAULT_ROOT, wait: Patience = 120) -> None:
    """End a run as cancel does, and keep schedules from it until it is resumed."""
    typer.echo(stop.pause(run, root, wait))
