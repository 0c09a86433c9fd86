"""The commands of operation: up and down, serve and deploy."""

from typing import Annotated

import typer

from flows.cli.options import Changes, Commands, RecipePath, Root
from flows.registry import DEFAULT_ROOT
from flows.schedule import PoolType

app = Commands("Operate")


Name = Annotated[str | None, typer.Option(help="name of the run; the recipe's if empty")]
Cron = Annotated[str | None, typer.Option(help="when, as a cron expression, such as '0 3 * * *'")]
Interval = Annotated[int | None, typer.Option(min=1, metavar="SECONDS", help="or how often, in seconds")]
RRule = Annotated[str | None, typer.Option(help="or a recurrence rule, such as 'FREQ=WEEKLY;BYDAY=SA;BYHOUR=3'")]
Timezone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help="of the times of --cron and --rrule, such as Europe/Berlin; UTC if empty"),
]
RoundsPerRun = Annotated[int, typer.Option(min=1, max=100_000, help="rounds that each scheduled run adds")]


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="port of the server, on this machine alone; 4200 if empty")
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Start a Prefect server with its page and the shipped recipes, and a worker, in the background of this machine."""
    from flows.host.progress import Display
    from flows.schedule import commands

    commands.up(port, root, Display().say)


@app.command()
def down() -> None:
    """End the server and the worker that 'rondo up' started, and what they run. Runs go on from there later."""
    from flows.host.progress import Display
    from flows.schedule import commands

    commands.down(Display().say)


@app.command()
def serve(
    recipe: RecipePath,
    name: Name = None,
    cron: Cron = None,
    interval: Interval = None,
    rrule: RRule = None,
    timezone: Timezone = None,
    rounds_per_run: RoundsPerRun = 1,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
) -> None:
    """Schedule rounds while this command runs: each scheduled run adds rounds to the same run. Ends with Ctrl-C."""
    from flows.host.progress import Display
    from flows.schedule import commands

    when = commands.When(cron, interval, rrule, timezone)
    commands.serve(recipe, name, when, rounds_per_run, root, set_ or [], Display().say)


@app.command()
def deploy(
    recipe: RecipePath,
    name: Name = None,
    pool: Annotated[
        str | None, typer.Option(help="the work pool, created if there is none; that of 'rondo up' if empty")
    ] = None,
    type_: Annotated[PoolType | None, typer.Option("--type", help="of a new pool; process if empty")] = None,
    image: Annotated[str | None, typer.Option(help="for containers: an image that has rondo in it")] = None,
    cron: Cron = None,
    interval: Interval = None,
    rrule: RRule = None,
    timezone: Timezone = None,
    rounds_per_run: RoundsPerRun = 1,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
) -> None:
    """Hand scheduled rounds to the workers of a pool, with a form for the recipe in Prefect's UI."""
    from flows.host.progress import Display
    from flows.prefect_api.server_record import DEFAULT_POOL
    from flows.schedule import commands

    when = commands.When(cron, interval, rrule, timezone)
    target = commands.Target(pool or DEFAULT_POOL, type_, image)
    commands.deploy(recipe, name, when, target, rounds_per_run, root, set_ or [], Display().say)
