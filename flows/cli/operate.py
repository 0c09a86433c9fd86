"""The commands of operation: up and down, serve and deploy."""

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.options import Changes, RecipePath, Root
from flows.host.progress import Display
from flows.prefect_api.server_record import DEFAULT_POOL
from flows.registry.catalog import DEFAULT_ROOT
from flows.schedule import commands

app = typer.Typer()


class PoolType(StrEnum):
    """Where a pool's workers run."""

    process = "process"
    docker = "docker"
    kubernetes = "kubernetes"


Name = Annotated[str | None, typer.Option(help="name of the run; the recipe's if none is given")]
Cron = Annotated[str | None, typer.Option(help="when, as a cron expression in UTC, such as '0 3 * * *'")]
Interval = Annotated[int | None, typer.Option(min=1, metavar="SECONDS", help="or how often, in seconds")]
RRule = Annotated[str | None, typer.Option(help="or a recurrence rule in UTC, such as 'FREQ=WEEKLY;BYDAY=SA;BYHOUR=3'")]
RoundsPerRun = Annotated[int, typer.Option(min=1, max=100_000, help="rounds that each scheduled run adds")]


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="port of the server, on this machine alone; 4200 else")
    ] = None,
) -> None:
    """Start a Prefect server with its UI and a worker on this machine, in the background, and say where."""
    commands.up(port, Display().say)


@app.command()
def down() -> None:
    """End the server and the worker that 'rondo up' started, and what they run. Runs go on from there later."""
    commands.down(Display().say)


@app.command()
def serve(
    recipe: RecipePath,
    name: Name = None,
    cron: Cron = None,
    interval: Interval = None,
    rrule: RRule = None,
    rounds_per_run: RoundsPerRun = 1,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
) -> None:
    """Schedule rounds while this command runs: each scheduled run adds rounds to the same run. Ends with Ctrl-C."""
    when = commands.When(cron, interval, rrule)
    commands.serve(recipe, name, when, rounds_per_run, root, set_ or [], Display().say)


@app.command()
def deploy(
    recipe: RecipePath,
    name: Name = None,
    pool: Annotated[str, typer.Option(help="the work pool; it is created if there is none")] = DEFAULT_POOL,
    type_: Annotated[PoolType | None, typer.Option("--type", help="of a new pool; process if nothing is given")] = None,
    image: Annotated[str | None, typer.Option(help="for containers: an image that has rondo in it")] = None,
    cron: Cron = None,
    interval: Interval = None,
    rrule: RRule = None,
    rounds_per_run: RoundsPerRun = 1,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
) -> None:
    """Hand scheduled rounds to the workers of a pool, with a form for the recipe in Prefect's UI."""
    when = commands.When(cron, interval, rrule)
    target = commands.Target(pool, type_.value if type_ else None, image)
    commands.deploy(recipe, name, when, target, rounds_per_run, root, set_ or [], Display().say)
