"""``rondo view``: the page that looks into runs."""

from pathlib import Path
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
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="write the pages of RUN, or of RUN@ROUND alone, as files that need no server, and end"
        ),
    ] = None,
) -> None:
    """Look into rounds, completions and preferences in a browser, also while a run is at work."""
    if export is not None:
        _export(source, root, export, open_browser=open_)
        return
    from flows.view.server import serve

    serve(source, root, host=host, port=port, open_browser=open_, say=typer.echo)


def _export(source: str | None, root: str, to: Path, *, open_browser: bool) -> None:
    from flows.view.export import export
    from pipeline.errors import ConfigError

    if source is None:
        raise ConfigError(f"--export '{to}' needs a run: rondo view --export '{to}' RUN, or RUN@ROUND")
    index = export(source, root, to, say=typer.echo)
    if open_browser:
        typer.launch(index.as_uri())
