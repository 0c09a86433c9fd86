"""The command line: ``rondo --help``."""

import signal
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from flows.cli import inspect, judges, operate, plan, running, share, store, timeline
from flows.cli.options import hide_flag_types
from flows.errors import InterruptedRunError, WaitingForLabelsError
from pipeline.errors import RondoError
from storage.errors import StoreError

WAITING = 3
INTERRUPTED = 130  # as shells count an end by Ctrl-C


class _Group(TyperGroup):
    """All commands; the flags among the options of ``rondo`` itself show no type."""

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)
        hide_flag_types(parameters)
        return parameters


app = typer.Typer(
    name="rondo",
    cls=_Group,
    help="Rounds of online DPO: sample, judge, update, evaluate, checkpoint; resume or fork from any of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for commands in (running, inspect, timeline, share, judges, store, plan, operate):
    app.add_typer(commands.app)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # as costly as the rest of this module

        typer.echo(f"rondo {metadata.version('rondo')}")
        raise typer.Exit


@app.callback()
def rondo(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="say the version, and end")
    ] = False,
) -> None:
    del version  # heard by its callback, before a command is asked for


def main() -> None:
    """Runs a command; what a user can mend is one sentence on standard error and exit status 1."""
    # A script's job in the background ignores Ctrl-C, and with it SIGTERM, which takes the same way to an orderly end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(prog_name="rondo")
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
