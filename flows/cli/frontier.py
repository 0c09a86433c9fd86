"""The command that runs an experiment, and draws what came out: frontier."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import tables
from flows.cli.options import Commands, Format, Output, Root
from flows.registry import DEFAULT_ROOT
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from flows.experiments.planned import Planned

app = Commands("Runs")


@app.command("frontier")
def frontier_(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="a YAML file, or the name of one in deploy/experiments")
    ],
    seeds: Annotated[str | None, typer.Option(metavar="LIST", help="seeds, such as 0,1,2; those of the file if empty")] = None,
    arms: Annotated[str | None, typer.Option(metavar="LIST", help="arms, such as online,offline-0.5; all if empty")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say which runs there are and are missing, and end")] = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Run the arms of an experiment at one budget of samples, and draw held-out reward against KL with intervals.

    Each arm and seed is a run EXPERIMENT-ARM-SEED. To give the same command again goes on where it was interrupted.
    """
    from flows.experiments.experiment import read_experiment
    from flows.experiments.planned import cost, planned
    from flows.experiments.running import bring_on
    from flows.host.progress import Display

    plan = read_experiment(experiment)
    chosen = _numbers(seeds) if seeds else list(plan.experiment.seeds)
    variants = plan.variants(_names(arms) if arms else ())
    runs = planned(plan, variants, chosen, root)
    if dry_run:
        rows = [_row(run) for run in runs]
        tables.print_rows(rows, title=plan.experiment.question, format=format)
        if format.is_for_people:
            typer.echo(cost(runs))
        return
    with Display() as display:
        display.say(cost(runs))
        bring_on(plan, runs, root, display)


def _row(run: "Planned") -> dict[str, Any]:
    return {
        "run": run.name, "method": run.variant.spec.method, "rounds": f"{max(run.done, 0)}/{run.recipe.rounds}",
        "samples": run.samples,
    }  # fmt: skip


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError:
        raise ConfigError(f"--seeds '{text}' is no list of whole numbers, such as 0,1,2") from None
