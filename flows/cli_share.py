"""The commands that hand a round on: checkpoint and publish."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import existing_store, run_at_round
from flows.options import DEFAULT_ROOT, Root, RunAtRound
from flows.publish import What, checkpoint_files, publish
from pipeline.errors import ConfigError
from storage.checkpoints import copy_directory, local_directory

app = typer.Typer()


@app.command()
def checkpoint(
    source: RunAtRound,
    to: Annotated[
        Path | None, typer.Option(help="copy it to this new directory; needed where runs lie in a bucket")
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Print the directory of a round's checkpoint, verified, as in: vllm serve $(rondo checkpoint demo@3)"""
    store = existing_store(root)
    run, number = run_at_round(store, source)
    files = checkpoint_files(run, number)
    if to is not None:
        target = to.expanduser().resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"'{to}' is already there, and not an empty directory: give a new one")
        copy_directory(store, files, target)
        typer.echo(target)
    elif store.is_local:
        typer.echo(local_directory(store, files, Path()))
    else:
        raise ConfigError(f"the runs in {store.root} lie on no local disk: give a directory to copy to, as --to")


@app.command("publish")
def publish_(
    source: RunAtRound,
    repo: Annotated[str, typer.Option(help="NAMESPACE/NAME on the Hub, or NAME in the namespace of the token's owner")],
    what: Annotated[What, typer.Option(help="the checkpoint, its preferences, or both")] = What.both,
    private: Annotated[bool, typer.Option("--private", help="new repositories are seen by their owners only")] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Push a round to the Hub: the checkpoint as a model, its preferences as a dataset. The token is HF_TOKEN's."""
    store = existing_store(root)
    run, number = run_at_round(store, source)
    for url in publish(store, run, number, repo, what, private=private):
        typer.echo(url)
