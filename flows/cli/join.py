"""The command with which another machine takes part in a run's updates: join."""

import os
from typing import Annotated

import typer

from flows.cli.options import Root
from flows.registry.catalog import DEFAULT_ROOT

app = typer.Typer()


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="the run's devices.trainer_address")],
    root: Root = DEFAULT_ROOT,
    wait: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="how long to wait for a run to be there")] = 600,
) -> None:
    """Share the updates of a run on another machine, until it is over. Start it on each of the others.

    The machine needs to see the same root: a bucket, or a directory that both have mounted.
    """
    # Of a head that goes away, torch would print a page for each connection; what happened is said in a sentence.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from flows.host.signals import orderly_end
    from flows.remote.join import Joining

    with orderly_end("left: the update goes on once another machine has joined"):
        Joining(address, root, wait, typer.echo).serve()
