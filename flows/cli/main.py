"""The command line: ``rondo --help``."""

import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.analysis import queries
from flows.cli import control, inspect, join, judges, operate, plan, share, store, tables, timeline
from flows.cli.options import Changes, Json, RecipePath, Root, RunAtRound, RunName, TakeOver
from flows.errors import InterruptedRunError, WaitingForLabelsError
from flows.host.progress import Display
from flows.publish.style import Style
from flows.registry.catalog import DEFAULT_ROOT, list_rounds, list_runs
from flows.report import report as reports
from flows.run import start as starting
from pipeline.errors import RondoError
from storage.errors import StoreError

app = typer.Typer(
    name="rondo",
    help="Rounds of online DPO: sample, judge, update, evaluate, checkpoint; resume or fork from any of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="bring the run to this many rounds")]
WAITING = 3
INTERRUPTED = 130  # as shells count an end by Ctrl-C
app.add_typer(control.app)
app.add_typer(store.app)
app.add_typer(inspect.app)
app.add_typer(judges.app)
app.add_typer(share.app)
app.add_typer(plan.app)
app.add_typer(timeline.app)
app.add_typer(operate.app)
app.add_typer(join.app)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rondo {metadata.version('rondo')}")
        raise typer.Exit


@app.callback()
def rondo(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="say the version, and end")
    ] = False,
) -> None:
    del version  # heard by its callback, before a command is asked for


@app.command()
def run(
    recipe: RecipePath,
    name: Annotated[str | None, typer.Option(help="name of the run; the recipe's where none is given")] = None,
    rounds: Rounds = None,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run exists already")] = False,
) -> None:
    """Start a run from a recipe, and run its rounds."""
    with Display() as display:
        finished = starting.start(recipe, name, rounds, root, set_ or [], resume=resume, display=display)
    tables.print_finished(finished)


@app.command("resume")
def resume_(
    run: RunName,
    rounds: Rounds = None,
    root: Root = DEFAULT_ROOT,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="run it otherwise, such as devices.trainer_nodes=1"),
    ] = None,
    take_over: TakeOver = False,
) -> None:
    """Continue a run where it stopped, or add rounds to it; on other devices or in another mode, where one is given."""
    with Display() as display:
        finished = starting.resume(run, rounds, root, set_ or [], take_over=take_over, display=display)
    tables.print_finished(finished)


@app.command()
def fork(
    source: RunAtRound,
    name: Annotated[str, typer.Option(help="name of the new run")],
    rounds: Rounds = None,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="run its rounds at once")] = True,
) -> None:
    """Start a new run from a round's checkpoint. Files are shared with the parent, and nothing is copied."""
    with Display() as display:
        finished = starting.fork(source, name, rounds, root, set_ or [], start=start, display=display)
    tables.print_finished(finished)


@app.command()
def runs(root: Root = DEFAULT_ROOT, json: Json = False) -> None:
    """List the runs: recipe, rounds done, last reward, state."""
    tables.print_rows(list_runs(root), title=f"Runs in {root}", as_json=json, empty="no runs yet: rondo run RECIPE")


@app.command("rounds")
def rounds_(run: RunName, root: Root = DEFAULT_ROOT, json: Json = False) -> None:
    """Show a run's rounds, one row each."""
    tables.print_rounds(run, list_rounds(run, root), as_json=json)


@app.command()
def show(
    source: RunAtRound,
    table: Annotated[queries.Table, typer.Option(help="which table")] = queries.Table.candidates,
    prompt: Annotated[str | None, typer.Option(help="only this prompt: its id, or the beginning of it")] = None,
    limit: Annotated[int, typer.Option(min=1, help="most rows")] = 10,
    where: Annotated[
        str | None, typer.Option(help="an SQL condition, such as \"score > 0.5 and finish_reason = 'length'\"")
    ] = None,
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Look into a round: its candidates, judgments and preferences, and the held-out ones of its evaluation."""
    columns = None if json else tables.readable_columns(table.value)
    rows = queries.show(source, root, table=table.value, prompt=prompt, limit=limit, where=where, columns=columns)
    tables.print_table(rows, table.value, source, as_json=json)


@app.command()
def export(
    source: RunAtRound,
    to: Annotated[Path, typer.Option(help="a new directory")],
    style: Annotated[
        Style, typer.Option(help="lists of messages, or texts, for models without a chat template")
    ] = Style.messages,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="keep completions cut at the limit, which end as if they were finished")
    ] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write a round's preferences in the prompt/chosen/rejected form that other trainers read."""
    rows = queries.export(source, root, to, style=style, truncated=truncated, say=typer.echo)
    typer.echo(f"{rows} preferences in {to}: datasets.load_dataset('{to}')")


@app.command()
def report(
    run: RunName,
    root: Root = DEFAULT_ROOT,
    picture: Annotated[Path | None, typer.Option(help="write the main curves to this SVG file as well")] = None,
) -> None:
    """Write a run's report: one HTML file with its curves, metrics and completions."""
    typer.echo(reports.report(run, root, picture))


def main() -> None:
    """Runs a command; what a user can mend is one sentence on standard error and exit status 1."""
    # A script's job in the background ignores Ctrl-C, and with it SIGTERM, which takes the same way to an orderly end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except InterruptedRunError as interruption:
        Console(stderr=True).print(str(interruption), markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    except WaitingForLabelsError as waiting:
        Console(stderr=True).print(str(waiting), markup=False, highlight=False, soft_wrap=True)
        sys.exit(WAITING)
    except (RondoError, StoreError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
