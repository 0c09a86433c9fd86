"""The commands about judges and labels: train-judge, label, export-labels, import-labels."""

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli import tables
from flows.cli.options import Commands, Format, Output, Root, RunAtRound
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.analysis.train_judge import TrainedJudge

app = Commands("Judges and labels")


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
    from flows.analysis.train_judge import train_judge, training_settings
    from flows.host.progress import Display

    config = training_settings(
        objective=objective, epochs=epochs, regression_epochs=regression_epochs, learning_rate=learning_rate,
        weight_decay=weight_decay, batch_size=batch_size, held_out=held_out, seed=seed, device=device, threads=threads,
        without_template=without_template,
    )  # fmt: skip
    with Display() as display, display.doing("reading"), display.stage(None, "fit", unit="steps") as stage:

        def on_step(step: int, steps: int, loss: float) -> None:
            stage.report({"done": step, "total": steps, "loss": loss})

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
    rubric: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_TEXT", help="what makes a completion good; the criteria of the run's judge model if empty"
        ),
    ] = None,
    queue: Annotated[
        str,
        typer.Option(
            help="which pairs, and in which order: asked (what the run asks for), random, margin (the smallest first), "
            "judges or people (those on which they disagree)"
        ),
    ] = "asked",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Ask a person which of two completions is better. Each choice is kept at once; nothing is asked twice.

    On a terminal one key is a choice, and others go back, undo, skip and quit; elsewhere a line is.
    """
    from flows.analysis.labelling import Answers, Labelling
    from flows.cli.label_screen import label_by_keys, label_by_lines

    labelling = Labelling.open(source, labeller or getpass.getuser(), seed, root, queue)
    answers = Answers(labelling, labelling.questions[:count])
    told = labelling.asked.criteria if rubric is None else _read_rubric(rubric)
    console = Console()
    if sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal:
        label_by_keys(console, labelling, answers, told)
    else:
        label_by_lines(console, labelling, answers, told)
    left = len(labelling.questions) - answers.answered
    rate = f", {answers.per_hour:,.0f} an hour" if answers.answered else ""
    console.print(f"{answers.answered} answered, {left} left of {source}{rate}", markup=False, highlight=False)


_LabelFormat = Annotated[str, typer.Option(help="argilla (its records as JSON) or label-studio (its tasks as JSON)")]


@app.command("export-labels")
def export_labels_(
    source: RunAtRound,
    to: Annotated[Path, typer.Option(help="a new file")],
    format: _LabelFormat,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write the pairs of a round, and what people have said of them, for another labelling program."""
    from flows.analysis.label_files import export_labels
    from flows.host.text import counted

    pairs, labels = export_labels(source, to, format, root)
    typer.echo(f"written: {to}, with {counted(pairs, 'pair')} and {counted(labels, 'label')}")


@app.command("import-labels")
def import_labels_(
    source: RunAtRound,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="what the other program has exported")],
    format: _LabelFormat,
    labeller: Annotated[
        str | None, typer.Option(help="name of who has labelled all of it; whom the file names if empty")
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Keep what people have said of a round's pairs in another labelling program; twice is as once."""
    from flows.analysis.label_files import import_labels
    from flows.host.text import counted

    found = import_labels(source, path, format, root, labeller)
    who = f" of {', '.join(sorted(found.people))}" if found.people else ""
    others = f", {counted(found.others, 'record')} of no pair of the round" if found.others else ""
    typer.echo(f"{counted(found.kept, 'label')} kept{who}, {found.known} known before{others}")
    if found.unsure:
        typer.echo(
            f"the file does not say which responses were submitted: {counted(found.unsure, 'label')} may be drafts, or "
            "discarded; give a file of records that are submitted"
        )


def _read_rubric(rubric: str) -> str:
    """Reads the text of a file, or returns what was given if there is no such file."""
    from pipeline.errors import ConfigError

    path = Path(rubric)
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else rubric
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the rubric '{path}' cannot be read: {error}") from error
