"""The commands about judges: train-judge."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flows import tables
from flows.judge_report import bin_rows, facts
from flows.options import DEFAULT_ROOT, Json, Root
from flows.train_judge import REPORT, TrainedJudge, train_judge, training_settings
from pipeline.config.reward_training import RewardObjective

app = typer.Typer()


@app.command("train-judge")
def train_judge_(
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN[@ROUNDS]...", help="whose preferences: demo, demo@3, demo@1-4 other@2,5")
    ],
    to: Annotated[Path, typer.Option(help="a new directory")],
    objective: Annotated[RewardObjective, typer.Option(help="the loss")] = "bradley_terry",
    base: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_ID", help="what to start from; the newest checkpoint of the first run by default"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the pairs")] = 1,
    regression_epochs: Annotated[int, typer.Option(min=1, help="passes over the ratings before that")] = 2,
    learning_rate: Annotated[float, typer.Option(help="at the beginning; falls to zero")] = 1e-5,
    weight_decay: Annotated[float, typer.Option(help="of AdamW")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="pairs of a step")] = 32,
    held_out: Annotated[float, typer.Option(help="share of the prompts to measure on")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="of the head, the split and the order")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="threads on a CPU")] = 1,
    without_template: Annotated[
        bool, typer.Option("--without-template", help="join prompt and answer as they are, in place of a chat template")
    ] = False,
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Fit a reward model to the preferences of rounds; measure it on prompts that it never saw."""
    config = training_settings(
        objective=objective, epochs=epochs, regression_epochs=regression_epochs, learning_rate=learning_rate,
        weight_decay=weight_decay, batch_size=batch_size, held_out=held_out, seed=seed, device=device, threads=threads,
        without_template=without_template,
    )  # fmt: skip
    columns = (TextColumn("loss {task.fields[loss]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("fit", total=None, loss="-")

        def on_step(step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, loss=f"{loss:.4f}")

        trained = train_judge(sources, to, base, config, root, on_step)
    if json:
        tables.print_json(trained.record)
        return
    _print_trained(trained)


def _print_trained(trained: TrainedJudge) -> None:
    rows = [{"": name, "value": value} for name, value in facts(trained.record).items()]
    tables.print_rows(rows, title=f"Reward model {trained.directory.name}", as_json=False, empty="")
    tables.print_rows(bin_rows(trained.calibration), title="Reliability", as_json=False, empty="")
    typer.echo(f"written: {trained.directory}, with {REPORT}")
    std = ", gives_std: true" if trained.record["objective"] == "uncertainty" else ""
    typer.echo(f"in a recipe: judge: {{kind: reward_model, path: {trained.directory}{std}}}")
