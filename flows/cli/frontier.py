"""The command that runs an experiment, and draws what came out: frontier."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import tables
from flows.cli.options import Commands, Format, Output, Root
from flows.registry import DEFAULT_ROOT
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from flows.experiments.experiment import Experiment
    from flows.experiments.planned import Planned
    from flows.experiments.results import Results
    from pipeline.evaluation.over_seeds import Interval

app = Commands("Runs")


@app.command("frontier")
def frontier_(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="a YAML file, or a name of one that rondo brings along")
    ],
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="seeds, such as 0,1,2; those of the file if empty")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="LIST", help="arms, such as online,offline-0.5; all if empty")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="where picture and figures are written; ROOT/experiments if empty"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say which runs there are and which are missing, and run nothing")
    ] = False,
    draw_only: Annotated[
        bool, typer.Option("--draw-only", help="run nothing, and draw the finished runs that are there")
    ] = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Run the arms of an experiment at one budget of samples, and draw held-out reward against KL with intervals.

    Each arm and seed is a run EXPERIMENT-ARM-SEED. To give the same command again goes on where it was interrupted.
    """
    from flows.experiments.experiment import read_experiment
    from flows.experiments.planned import cost, planned
    from flows.host.progress import Display

    plan = read_experiment(experiment)
    chosen = _numbers(seeds) if seeds else list(plan.experiment.seeds)
    runs = planned(plan, plan.variants(_names(arms) if arms else ()), chosen, root)
    if dry_run:
        tables.print_rows([_row(run) for run in runs], title=plan.experiment.question, format=format)
        if format.is_for_people:
            typer.echo(cost(runs))
        return
    with Display() as display:
        display.say(cost(runs))
        if not draw_only:
            from flows.experiments.running import bring_on

            bring_on(plan, runs, root, display)
        with display.doing("reading what the runs have measured"):
            found = _results(plan.experiment, [run for run in runs if run.compared], root)
    _print_results(plan.experiment, found, format)
    files = _written(plan.experiment, found, to, root)
    if format.is_for_people:
        typer.echo(f"written: {', '.join(map(str, files))}")


def _results(experiment: "Experiment", runs: Sequence["Planned"], root: str) -> "Results":
    from flows.experiments.planned import looked_at
    from flows.experiments.points import read_points
    from flows.experiments.results import results
    from storage.log.store import Store

    store = Store.open(root)
    finished = [run for run in (looked_at(store, run) for run in runs) if run.finished]
    if not finished:
        raise ConfigError(f"no run of experiment '{experiment.name}' is finished: leave out --draw-only")
    return results(experiment, read_points(store, finished))


def _written(experiment: "Experiment", found: "Results", to: Path | None, root: str) -> list[Path]:
    from flows.experiments.drawing import write_results

    if to is None and "://" in root:
        raise ConfigError(f"root '{root}' is no directory for a picture: say where, with --to")
    return write_results(experiment, found, to or Path(root) / "experiments")


def _print_results(experiment: "Experiment", found: "Results", format: Format) -> None:
    from flows.experiments.drawing import row

    last = [
        {
            "arm": mean.name, "seeds": len(mean.seeds), experiment.score: _interval(mean.y), "KL": _interval(mean.kl),
            **{judge: f"{score:+.3f}" for judge, score in mean.judges.items() if judge != experiment.score},
        }
        for mean in found.means
        if mean.last
    ]  # fmt: skip
    names = list(dict.fromkeys(name for one in last for name in one))
    tables.print_rows(
        [{name: one.get(name, "-") for name in names} for one in last],
        title=f"{experiment.question} Last policies", format=format,
        records=[row(mean) for mean in found.means], document=found.document(experiment),
    )  # fmt: skip
    if not format.is_for_people:
        return
    at = [
        {
            "KL": f"{one.kl:g}", "arm": one.arm, experiment.score: _interval(one.y),
            "less than the first": "-" if one.less is None else _interval(one.less),
            "p, these runs": "-" if one.p is None else f"{one.p:.2g}",
        }
        for one in found.at_kl
    ]  # fmt: skip
    tables.print_rows(
        at,
        title="At equal KL, the best mixture of two policies of an arm",
        format=format,
        empty="no arm reaches the KLs that are asked for",
    )
    own = [
        {"arm": one.name, f"more than {one.first}": _interval(one.more), "p, these runs": f"{one.p:.2g}"}
        for one in found.at_own_kl
    ]
    if own:
        tables.print_rows(own, title="At the KL of each last policy", format=format)
    players = list(dict.fromkeys(win.name for win in found.wins))
    rates = {(win.name, win.against): _interval(win.rate, percent=True) for win in found.wins}
    rows = [{"wins of": name, **{other: rates.get((name, other), "-") for other in players}} for name in players]
    tables.print_rows(
        rows, title=f"Win rate against each on held-out prompts, by {experiment.table_judge}", format=format
    )
    typer.echo("± is half of a 95% interval over seeds; of a single seed, over its prompts")


def _interval(value: "Interval", *, percent: bool = False) -> str:
    if percent:
        return f"{value.mean:.1%}" + ("" if value.half != value.half else f" ± {100 * value.half:.1f}")
    return f"{value.mean:.3f}" + ("" if value.half != value.half else f" ± {value.half:.3f}")


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
