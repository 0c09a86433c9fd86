"""Arguments and options that several commands have, and the kind of command that all of them are.

Every module of commands is imported at each start. So it imports only typer and this module; each command imports what
else it needs when it is called.
"""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperOption

from flows.registry import DEFAULT_ROOT

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    markdown = "markdown"

    @property
    def is_for_people(self) -> bool:
        """Says whether it shows only the columns that people read, rather than all."""
        return self in (Format.table, Format.markdown)


class Command(TyperCommand):
    """A command: its flags show no type in the help, and ``--json`` still means ``--format json``."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        hide_flag_types(self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments; the old flag ``--json`` is accepted before ``--``."""
        if any(parameter.name == "format" for parameter in self.params):
            end = args.index("--") if "--" in args else len(args)
            args = ["--format=json" if text == "--json" else text for text in args[:end]] + args[end:]
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        """Gives the option ``--help``, without a type like all flags."""
        option = super().get_help_option(ctx)
        hide_flag_types([option])
        return option


class Commands(typer.Typer):
    """Some commands, which the help of ``rondo`` shows under one title."""

    def __init__(self, panel: str) -> None:
        super().__init__()
        self._panel = panel

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = Command, **settings: Any
    ) -> Callable[[_Function], _Function]:
        """Adds a command; see ``typer.Typer.command``."""
        return super().command(name, cls=cls, **{"rich_help_panel": self._panel, **settings})


def hide_flag_types(parameters: list[Any]) -> None:
    """Leaves out ``<bool>`` in the help of flags: a flag takes no value."""
    for option in parameters:
        if isinstance(option, TyperOption) and option.is_flag:
            option.metavar = ""


def _run_names(incomplete: str) -> list[str]:
    """Lists the runs under the root of the environment, or the usual one, for the shell's completion."""
    from flows.registry.catalog import existing_store
    from pipeline.errors import RondoError
    from storage.errors import StoreError

    try:
        names = existing_store(os.environ.get("RONDO_ROOT", DEFAULT_ROOT)).run_names()
    except (RondoError, StoreError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def _recipe_names(incomplete: str) -> list[str]:
    """Lists the recipes that rondo brings along, for the shell's completion; the shell itself completes paths."""
    from flows.registry.shipped_files import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="a YAML file, or a name that 'rondo recipes' lists", autocompletion=_recipe_names
    ),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field, such as update.beta=0.2")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="name of the run", autocompletion=_run_names)]
RunAtRound = Annotated[
    str,
    typer.Argument(
        metavar="RUN@ROUND",
        help="a run and one of its rounds, such as demo@3; demo alone, or demo@latest, means its newest round",
        autocompletion=_run_names,
    ),
]
Root = Annotated[
    str, typer.Option("--root", envvar="RONDO_ROOT", help="where runs are kept: a directory, or s3://, gs://, az://")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="write although another machine may still be writing; it will be shut out")
]
Output = Annotated[Format, typer.Option("--format", help="print the result as this")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what would go, and change nothing")]
