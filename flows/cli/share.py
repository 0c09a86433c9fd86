"""The commands that hand a round on: report, export, checkpoint, publish."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Commands, Root, RunAtRound, RunName
from flows.publish import Style, What
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from storage.log.run import Run

app = Commands("Share")


@app.command()
def report(
    run: RunName,
    root: Root = DEFAULT_ROOT,
    picture: Annotated[Path | None, typer.Option(help="write the main curves to this SVG file as well")] = None,
) -> None:
    """Write a run's report: one HTML file with its curves, metrics and completions."""
    from flows.host.progress import doing

    with doing("writing the report"):
        from flows.report import report as reports

        path = reports.report(run, root, picture)
    typer.echo(path)


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
    tried: Annotated[
        bool,
        typer.Option("--tried", help="in place of a round's: what people chose between two texts of 'Try' on the page"),
    ] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write a round's preferences in the prompt/chosen/rejected form that other trainers read."""
    from flows.analysis import queries
    from flows.host.progress import doing

    notes: list[str] = []
    with doing("writing the preferences"):
        write = queries.export_tried if tried else queries.export
        rows = write(source, root, to, style=style, truncated=truncated, say=notes.append)
    for note in notes:
        typer.echo(note)
    typer.echo(f"{rows} preferences in {to}: datasets.load_dataset('{to}')")


def _say_of_gate(run: "Run", number: int) -> None:
    """Says, beside the output, if the gate has to do with which policy this is."""
    from flows.registry.head import failed_gate

    newest = run.finished[-1]
    if failed_gate(run.round_entry(number).meta):
        typer.echo(f"round {number} failed its gate: 'rondo rounds {run.name}' shows the last good one", err=True)
    elif all(failed_gate(run.round_entry(later).meta) for later in range(number + 1, newest + 1)) and newest > number:
        typer.echo(f"round {number} is the last good one: what came after it failed its gate", err=True)


@app.command()
def checkpoint(
    source: RunAtRound,
    to: Annotated[
        Path | None,
        typer.Option(help="copy it to this new directory; needed if runs lie in a bucket, and for adapters"),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Print the directory of a round's checkpoint, verified, as in: vllm serve $(rondo checkpoint demo@3)

    A copy of an adapter is the whole model, merged.
    """
    from flows.host.new_directory import new_directory
    from flows.host.progress import doing
    from flows.registry.catalog import existing_store, policy_at_round
    from flows.registry.checkpoints import checkpoint_files, is_adapter, local_policy
    from pipeline.errors import ConfigError
    from storage.tables.checkpoints import local_directory

    store = existing_store(root)
    run, number = policy_at_round(store, source)
    _say_of_gate(run, number)
    files = checkpoint_files(run, number)
    if to is not None:
        copying = doing(f"copying the checkpoint to {to}")
        with copying, tempfile.TemporaryDirectory(prefix="rondo-") as scratch, new_directory(to) as staged:
            policy = local_policy(store, run, number, Path(scratch))
            for path in (path for path in policy.rglob("*") if path.is_file()):
                copy = staged / path.relative_to(policy)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        typer.echo(to.expanduser().resolve())
    elif is_adapter(files):
        raise ConfigError(f"the checkpoint of {source} is an adapter: give a directory for the whole model, as --to")
    elif store.is_local:
        with doing("reading the checkpoint, to verify it"):
            path = local_directory(store, files, Path())
        typer.echo(path)
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
    from flows.host.progress import doing
    from flows.publish.publish import publish
    from flows.registry.catalog import existing_store, policy_at_round

    store = existing_store(root)
    run, number = policy_at_round(store, source)
    _say_of_gate(run, number)
    with doing(f"pushing {source} to {repo}"):
        urls = list(publish(store, run, number, repo, what, private=private))
    for url in urls:
        typer.echo(url)
