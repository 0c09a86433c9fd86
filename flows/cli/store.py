"""The commands that look after the store: verify, prune, sweep, delete, lineage; and at the machine: doctor."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flows.cli import tables
from flows.cli.options import Commands, DryRun, Format, Output, Root, RunName, TakeOver
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from storage.verify.verify import Verification

app = Commands("Look after the store")


@app.command()
def verify(run: RunName, root: Root = DEFAULT_ROOT, format: Output = Format.table) -> None:
    """Read everything of a run again, and say what is damaged; exit status 1 if anything is."""
    from flows.host.progress import Display
    from flows.registry.catalog import existing_store
    from flows.registry.verify_rules import RULES
    from storage.verify.verify import verify as verify_run

    store = existing_store(root)
    with Display() as display, display.stage(None, f"reading '{run}' again", unit="MB", stays=False) as stage:
        stage.begin()

        def on_progress(done: int, total: int) -> None:
            stage.report({"done": done / 1e6, "total": total / 1e6})

        found = verify_run(store, run, RULES, on_progress)
    _print_verification(found, format)
    if found.damages:
        raise typer.Exit(1)


@app.command()
def prune(
    run: RunName,
    keep_last: Annotated[int | None, typer.Option(min=1, metavar="N", help="keep those of the last N rounds")] = None,
    keep_every: Annotated[int | None, typer.Option(min=1, metavar="M", help="keep those of every M-th round")] = None,
    keep_best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC", help="keep those of the best round by a metric, such as reward or kl_initial:min"
        ),
    ] = None,
    dry_run: DryRun = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Remove weights and optimizer states of finished rounds; tables stay, and so does all that a fork needs."""
    from flows.analysis import pruning
    from flows.host.progress import doing

    with doing(f"looking for what '{run}' can do without"):
        found = pruning.prune(run, root, last=keep_last, every=keep_every, best=keep_best or [], dry_run=dry_run)
    rows = [
        {"round": item.round, "stage": item.stage, "files": len(item.files), "size": decimal(item.freed)}
        for item in found.removals
    ]
    verb = "would go" if dry_run else "removed"
    tables.print_rows(
        rows, title=f"{run}: {verb}", empty=f"nothing of '{run}' is there to be pruned", format=format,
        records=[asdict(item) for item in found.removals],
        document={"run": run, "removed": not dry_run, **asdict(found)},
    )  # fmt: skip
    if not format.is_for_people:
        return
    if rows:
        typer.echo(f"{decimal(sum(item.freed for item in found.removals))} {verb}; the tables of all rounds stay")
    if found.for_forks:
        several = "s" if len(found.for_forks) > 1 else ""
        rounds, forks = f"round{several} {', '.join(map(str, found.for_forks))}", ", ".join(found.forks)
        typer.echo(f"kept, because forks ({forks}) name them: the weights of {rounds}")


@app.command()
def sweep(
    grace: Annotated[str, typer.Option(help="leave alone what is younger, such as 90m, 24h or 7d")] = "24h",
    dry_run: DryRun = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Remove files that no run names: what killed workers and interrupted deletions have left behind."""
    from flows.analysis import pruning
    from flows.host.progress import doing

    with doing("looking for files that no run names"):
        strays = pruning.sweep(root, grace, dry_run=dry_run, say=lambda text: typer.echo(text, err=True))
    rows = [{"file": stray.path, "size": decimal(stray.bytes), "why": stray.why} for stray in strays]
    verb = "would go" if dry_run else "removed"
    records = [asdict(stray) for stray in strays]
    tables.print_rows(rows, title=f"{root}: {verb}", empty="nothing to sweep", format=format, records=records)
    if rows and format.is_for_people:
        typer.echo(f"{len(rows)} files, {decimal(sum(stray.bytes for stray in strays))} {verb}")


@app.command()
def delete(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    root: Root = DEFAULT_ROOT,
    take_over: TakeOver = False,
) -> None:
    """Delete a run with its tables and weights; refused while a fork names them or a process writes."""
    from flows.registry.catalog import existing_store
    from storage.retention.prune import check_deletable, delete_run

    store = existing_store(root)
    check_deletable(store, run)
    if not yes:
        typer.confirm(f"delete run '{run}' in {store.root} for good?", abort=True)
    delete_run(store, run, take_over=take_over)
    typer.echo(f"run '{run}' is deleted")


@app.command()
def lineage(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="only the family of this run")] = None,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Draw the tree of runs, forks and rounds, with what each was made from."""
    from flows.cli.lineage_tree import lineage_rows, lineage_tree
    from flows.registry.catalog import existing_store, waits_for_people
    from storage.queries.lineage import lineage as lineage_of

    store = existing_store(root)
    found = lineage_of(store, run, weights="checkpoint")
    if format is Format.table:
        names = [one["run"] for one in found]
        waiting = {name for name in names if waits_for_people(store.run(name, intact_part=True)) is not None}
        Console().print(lineage_tree(found, root, waiting))
    else:
        rows = lineage_rows(found)
        tables.print_rows(rows, empty="no runs yet: rondo run RECIPE", format=format, document=found)


@app.command()
def doctor(root: Root = DEFAULT_ROOT, format: Output = Format.table) -> None:
    """Look at this machine and say what is missing; exit status 1 if anything is."""
    from flows.cli.doctor import examine
    from flows.host.progress import doing

    with doing("looking at this machine"):
        found = examine(root)
    rows = [asdict(finding) for finding in found]
    tables.print_rows(rows, title="What rondo finds here", format=format, full=True)
    if any(finding.verdict == "missing" for finding in found):
        raise typer.Exit(1)


def _verification_row(found: "Verification") -> dict[str, Any]:
    """Returns the JSON of a verification, with the names that scripts know."""
    row = {"ok": not found.damages, **asdict(found)}
    return row | {"newest_checkpoint": row.pop("newest_good"), "released": row.pop("dropped")}


def _print_verification(found: "Verification", format: Format) -> None:
    rows = [{"round": damage.round, "problem": damage.problem, "meaning": damage.meaning} for damage in found.damages]
    if rows or not format.is_for_people:
        tables.print_rows(
            rows, title=f"Run {found.run}: damaged", format=format, records=[asdict(item) for item in found.damages],
            document=_verification_row(found),
        )  # fmt: skip
    if not format.is_for_people:
        return
    read = f"{found.files} files, {decimal(found.bytes)} read again"
    if found.dropped:
        read += f"; {found.dropped} files were removed on purpose"
    if not rows:
        typer.echo(f"run '{found.run}' is as it was committed: {read}")
        return
    good = ", ".join(map(str, found.good)) or "none"
    typer.echo(f"{read}; good rounds: {good}")
    if found.newest_good is None:
        typer.echo("no round has all that a next one needs")
    else:
        typer.echo(f"newest good checkpoint: rondo fork {found.run}@{found.newest_good} --name NEW")
