"""The commands about judges: train-judge, label."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from flows.cli import tables
from flows.cli.options import Commands, Format, Output, Root, RunAtRound
from flows.host.text import visible
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.analysis.labelling import Choice
    from flows.analysis.train_judge import TrainedJudge

app = Commands("Judges and labels")

_CHOICES: dict[str, "Choice"] = {"a": "a", "b": "b", "tie": "tie", "t": "tie", "skip": "skip", "s": "skip"}


@app.command("train-judge")
def train_judge_(
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN[@ROUNDS]...", help="whose preferences: demo, demo@3, demo@1-4 other@2,5")
    ],
    to: Annotated[Path, typer.Option(help="a new directory")],
    objective: Annotated[
        str, typer.Option(help="the loss; a name that does not exist is answered with those that do")
    ] = "bradley_terry",
    base: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_ID", help="what to start from; the initial policy of the first run by default"),
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
        bool,
        typer.Option("--without-template", help="join prompt and completion as they are, in place of a chat template"),
    ] = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Fit a reward model to the preferences of rounds; measure it on prompts that it never saw."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flows.analysis.train_judge import train_judge, training_settings

    config = training_settings(
        objective=objective, epochs=epochs, regression_epochs=regression_epochs, learning_rate=learning_rate,
        weight_decay=weight_decay, batch_size=batch_size, held_out=held_out, seed=seed, device=device, threads=threads,
        without_template=without_template,
    )  # fmt: skip
    columns = (TextColumn("loss {task.fields[loss]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("fit", total=None, loss="-")

        def on_step(step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, loss=f"{loss:.4f}")

        trained = train_judge(sources, to, base, config, root, on_step)
    _print_trained(trained, format)


def _print_trained(trained: "TrainedJudge", format: Format) -> None:
    from flows.analysis.train_judge import REPORT
    from flows.report.judge_report import bin_rows, facts
    from pipeline.reward_model.config import WITH_DEVIATION

    rows = [{"metric": name, "value": value} for name, value in facts(trained.record).items()]
    title = f"Reward model {trained.directory.name}"
    tables.print_rows(rows, title=title, format=format, document=trained.record)
    if not format.is_for_people:
        return
    tables.print_rows(bin_rows(trained.calibration), title="Reliability", format=format)
    if not trained.calibration.above_chance:
        Console(stderr=True).print(
            "it does no better than a coin on held-out pairs: raise --learning-rate (1e-3 for a model of a million "
            "parameters) or --epochs, or give more rounds",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    typer.echo(f"written: {trained.directory}, with {REPORT}")
    std = ", gives_std: true" if trained.record["objective"] in WITH_DEVIATION else ""
    typer.echo(f"in a recipe: judge: {{kind: reward_model, path: {trained.directory}{std}}}")


@app.command()
def label(
    source: RunAtRound,
    labeller: Annotated[str | None, typer.Option(help="name of who labels; the user's if empty")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="most questions to ask")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of which completion stands first")] = 0,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Ask a person which of two completions is better. Each choice is kept at once; nothing is asked twice."""
    from flows.analysis.labelling import Labelling

    labelling = Labelling(source, labeller or getpass.getuser(), seed, root)
    questions = labelling.questions[:count]
    console = Console()
    place = 0
    while place < len(questions):
        question = questions[place]
        first, second = labelling.shown(question)
        console.rule(f"{place + 1} of {len(questions)}")
        console.print(_panel("prompt", question.prompt.prompt_text))
        console.print(_panel("A", first.text), _panel("B", second.text), sep="\n")
        answer = _ask(console)
        if answer is None:
            break
        if answer == "undo" and place == 0:
            console.print("nothing to take back")
        elif answer == "undo":
            place -= 1
            labelling.withdraw(questions[place])
        else:
            labelling.choose(question, _CHOICES[answer])
            place += 1
    left = len(labelling.questions) - place
    console.print(f"{place} answered, {left} left of {source}", markup=False, highlight=False)


def _ask(console: Console) -> str | None:
    """What was typed, once it is one of the choices; None to quit, and at the end of the input."""
    while True:
        try:
            typed = console.input("better: a, b, tie, skip, undo or quit? ", markup=False).strip().lower()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return None
        if typed in ("quit", "q"):
            return None
        if typed in ("undo", "u"):
            return "undo"
        if typed in _CHOICES:
            return typed


def _panel(title: str, text: str) -> Panel:
    # Text, not markup, and nothing that a terminal would obey: what a model wrote must not draw, hide or answer.
    return Panel(Text(visible(text.strip("\n"))), title=title, title_align="left")
