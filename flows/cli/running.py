"""The commands that start, continue, fork and end a run, and the one with which another machine takes part in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.options import Changes, Commands, RecipePath, Root, RunAtRound, RunName, TakeOver
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.run.start import Finished

app = Commands("Run")

Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="bring the run to this many rounds")]
Patience = Annotated[float, typer.Option("--wait", min=1, metavar="SECONDS", help="how long to wait for the end")]


@app.command()
def run(
    recipe: RecipePath,
    name: Annotated[str | None, typer.Option(help="name of the run; the recipe's if empty")] = None,
    rounds: Rounds = None,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on if the run exists already")] = False,
) -> None:
    """Start a run from a recipe, and run its rounds."""
    from flows.host.progress import Display

    with Display() as display:
        with display.doing(f"reading {recipe}"):  # a terminal shows it before anything else is imported
            from flows.registry.recipes import load_recipe
            from flows.run.start import start

            content = load_recipe(recipe, [*(set_ or []), *([f"rounds={rounds}"] if rounds else [])])
        finished = start(content, name, root, resume=resume, display=display)
    print_finished(finished)


@app.command("resume")
def resume_(
    run: RunName,
    rounds: Rounds = None,
    root: Root = DEFAULT_ROOT,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="run it otherwise, such as devices.trainer_nodes=1"),
    ] = None,
    take_over: TakeOver = False,
) -> None:
    """Continue a run from where it stopped, or add rounds to it; with --set, on other devices or in another mode."""
    from flows.host.progress import Display
    from flows.run.start import resume

    with Display() as display:
        finished = resume(run, rounds, root, set_ or [], take_over=take_over, display=display)
    print_finished(finished)


@app.command("fork")
def fork_(
    source: RunAtRound,
    name: Annotated[str, typer.Option(help="name of the new run")],
    rounds: Rounds = None,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
    judgments: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="train anew on the completions up to that round, as 'rondo rejudge' has them judged under this name",
        ),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="run its rounds at once")] = False,
) -> None:
    """Make a new run that begins with a round of another one; 'rondo resume' runs its rounds. No file is copied."""
    from flows.host.progress import Display
    from flows.run.start import fork

    with Display() as display:
        finished = fork(source, name, rounds, root, set_ or [], judgments=judgments, run=run, display=display)
    print_finished(finished)


@app.command()
def cancel(run: RunName, root: Root = DEFAULT_ROOT, wait: Patience = 120) -> None:
    """End a run that is at work, in order: its workers end, and what is committed stays."""
    from flows.run import stop

    typer.echo(stop.cancel(run, root, wait))


@app.command()
def pause(run: RunName, root: Root = DEFAULT_ROOT, wait: Patience = 120) -> None:
    """End a run as cancel does, and keep schedules from it until it is resumed."""
    from flows.run import stop

    typer.echo(stop.pause(run, root, wait))


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the recipe; it is written to NAME.yaml")],
    model: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="the model to align")] = "Qwen/Qwen2.5-0.5B-Instruct",
    prompts: Annotated[
        str, typer.Option(metavar="FILE_OR_ID", help="a JSONL or Parquet file, or a dataset on the Hub")
    ] = "prompts.jsonl",
    judge: Annotated[
        str,
        typer.Option(
            metavar="JUDGE",
            help="MODULE:FUNCTION, FILE.py:FUNCTION, a reward model's directory or id, or vader, math, exact_answer",
        ),
    ] = "judges:score",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1")] = "cuda",
) -> None:
    """Write a commented recipe for a model, prompts and a judge of one's own."""
    from flows.registry.new_recipe import write_new_recipe

    path = Path(f"{name}.yaml")
    write_new_recipe(path, name, model, prompts, judge, device)
    typer.echo(f"written: {path}; change what you like, then: rondo run {path}")


def print_finished(finished: "Finished") -> None:
    """Prints what a run came to: its table, its message and where its report is."""
    from flows.cli.inspect import print_rounds

    print_rounds(finished.run, finished.rounds)
    console = Console()
    console.print(finished.message, markup=False, soft_wrap=True)
    if finished.report is not None:
        console.print(f"report: {finished.report}", markup=False, soft_wrap=True)
