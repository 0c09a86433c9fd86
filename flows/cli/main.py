"""The command line: ``rondo --help``."""

import atexit
import contextlib
import errno
import gc
import os
import signal
import sys
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from flows.cli import frontier, inspect, judges, operate, plan, rejudge, running, share, store, timeline, view
from flows.cli.options import hide_flag_types
from flows.errors import InterruptedRunError, WaitingForLabelsError
from flows.host import sure_end
from flows.host.imports import spare_help_parsers, spare_plugins
from flows.host.text import visible
from pipeline.errors import RondoError
from storage.errors import StoreError

_OUTPUT_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF)
"""Why something cannot be printed. If the error is of a file, it names the file."""
WAITING = 3
INTERRUPTED = sure_end.INTERRUPTED_STATUS


class _Group(TyperGroup):
    """All commands; the flags among the options of ``rondo`` itself show no type."""

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)
        hide_flag_types(parameters)
        return parameters


app = typer.Typer(
    name="rondo",
    cls=_Group,
    help="Rounds of iterative DPO: sample, judge, update, evaluate, checkpoint; resume or fork from any of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for commands in (running, frontier, inspect, view, timeline, share, judges, rejudge, store, plan, operate):
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


def _end_quickly() -> None:
    """Leaves out the interpreter's last collection: it goes through all that was imported, which takes long.

    Without it DuckDB's types are left over, of which its library complains on standard error.
    """
    if "duckdb" not in sys.modules:
        gc.freeze()


def main() -> None:
    """Runs a command; an error that a user can mend is one sentence on standard error and exit status 1."""
    if isinstance(sys.stdout, TextIOWrapper):  # what it cannot encode, such as a lone surrogate, is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    # A script's background job ignores Ctrl-C, and would then ignore SIGTERM too, which takes the same way to an end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit.register(_end_quickly)
    try:
        try:
            with sure_end.command():
                _run_command()
        finally:
            # All is done and said: a Ctrl-C while the interpreter ends, and Prefect sends its events, ends it at once.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        _end_with(error)


def _run_command() -> None:
    _check_arguments()
    spare_plugins()
    if "--help" in sys.argv:
        spare_help_parsers()
    try:
        app(prog_name="rondo")
    except InterruptedRunError as interruption:
        Console(stderr=True).print(str(interruption), markup=False, highlight=False, soft_wrap=True)
        sure_end.leave(INTERRUPTED)
        sys.exit(INTERRUPTED)
    except WaitingForLabelsError as waiting:
        Console(stderr=True).print(str(waiting), markup=False, highlight=False, soft_wrap=True)
        sys.exit(WAITING)
    except (RondoError, StoreError) as error:
        _say_error(str(error))
        sys.exit(1)


def _check_arguments() -> None:
    """Refuses names that are not UTF-8: they could be written neither into a record nor into an address."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            _say_error(f"'{visible(shown)}' is not UTF-8: give another name")
            sys.exit(1)


def _end_with(error: OSError) -> NoReturn:
    """Ends the command in which the operating system refused something.

    Raises:
        OSError: the error concerns neither a file nor what is printed.
    """
    if error.filename is not None:
        _say_error(f"'{error.filename}': {error.strerror}")
    elif error.errno in _OUTPUT_REFUSED:
        # What still waits to be printed would be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # a reader that has enough, such as head, is no error
            _say_error(f"standard output cannot be written: {error.strerror}")
    else:
        raise error
    sys.exit(1)


def _say_error(text: str) -> None:
    with contextlib.suppress(OSError):  # standard error is full as well: the exit status alone can tell
        Console(stderr=True).print(f"error: {text}", markup=False, highlight=False, soft_wrap=True, style="red")


if __name__ == "__main__":
    main()
