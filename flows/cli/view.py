"""``rondo view``: the page that looks into runs."""

from typing import Annotated

import typer

from flows.cli.options import Commands, Root
from flows.registry import DEFAULT_ROOT

app = Commands("Look into runs")


@app.command()
def view(
    source: Annotated[
        str | None, typer.Argument(metavar="[RUN[@ROUND]]", help="the run that is shown first; all runs without it")
    ] = None,
    root: Root = DEFAULT_ROOT,
    port: Annotated[int, typer.Option(min=0, max=65535, help="where it listens; 0 takes any that is free")] = 7789,
    host: Annotated[
        str, typer.Option(help="the address to listen on; on any but loopback, visitors need the token that is printed")
    ] = "127.0.0.1",
    open_: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
) -> None:
    """Look into rounds, completions and preferences in a browser, also while a run is at work."""
    from flows.view.server import serve

    serve(source, root, host=host, port=port, open_browser=open_, say=typer.echo)
