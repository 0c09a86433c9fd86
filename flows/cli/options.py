"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field, such as update.beta=0.2")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="name of the run")]
RunAtRound = Annotated[str, typer.Argument(metavar="RUN@ROUND", help="a run and one of its rounds, such as demo@3")]
Root = Annotated[
    str, typer.Option("--root", envvar="RONDO_ROOT", help="where runs are kept: a directory, or s3://, gs://, az://")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="write although another machine may still be writing; it will be shut out")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what would go, and change nothing")]
DEFAULT_ROOT = "runs"
