"""The commands that look into runs: which there are, their rounds, a round's tables, and questions over all rounds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows.cli import tables
from flows.cli.options import Commands, Format, Output, Root, RunAtRound, RunName
from flows.host.imports import spare_pandas
from flows.host.text import visible
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.registry.round_summary import RoundSummary

app = Commands("Look into runs")

Training = Annotated[
    bool,
    typer.Option("--training", help="take the completions sampled for training, in place of those to held-out prompts"),
]
Full = Annotated[bool, typer.Option("--full", help="whole conversations and texts; else they are shortened to fit")]
Limit = Annotated[int, typer.Option(min=1, help="most rows")]
_MOST_ROWS = 200
_BARS = " ▁▂▃▄▅▆▇█"


class Table(StrEnum):
    """The tables of a round that people look into; completions are called candidates in the store."""

    completions = "completions"
    judgments = "judgments"
    preferences = "preferences"
    replayed = "replayed"
    eval_completions = "eval_completions"
    eval_judgments = "eval_judgments"
    served_completions = "served_completions"
    served_judgments = "served_judgments"
    gate_completions = "gate_completions"
    gate_judgments = "gate_judgments"
    candidates = "candidates"
    eval_candidates = "eval_candidates"


@app.command()
def runs(root: Root = DEFAULT_ROOT, format: Output = Format.table) -> None:
    """List the runs: recipe, rounds done, last reward, state."""
    from flows.registry.catalog import list_runs

    tables.print_rows(list_runs(root), title=f"Runs in {root}", format=format, empty="no runs yet: rondo run RECIPE")


@app.command("rounds")
def rounds_(run: RunName, root: Root = DEFAULT_ROOT, format: Output = Format.table) -> None:
    """Show a run's rounds, one row each."""
    from flows.registry.catalog import existing_store, list_rounds
    from flows.registry.packing_check import untried_lengths

    print_rounds(run, list_rounds(run, root), format)
    if format.is_for_people and (untried := untried_lengths(existing_store(root).run(run))):
        typer.echo(f"policy: {untried}")


@app.command()
def show(
    source: RunAtRound,
    table: Annotated[
        Table,
        typer.Option(
            help="which table; eval_: of held-out prompts; served_: of these, as one would serve; gate_: of the gate"
        ),
    ] = (Table.completions),
    prompt: Annotated[str | None, typer.Option(help="only this prompt: its id, or the beginning of it")] = None,
    limit: Limit = 10,
    where: Annotated[
        str | None, typer.Option(help="an SQL condition, such as \"score > 0.5 and finish_reason = 'length'\"")
    ] = None,
    judgments: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="the scores, or judgments, that 'rondo rejudge' keeps under this name"),
    ] = None,
    full: Full = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Look into a round: its completions, judgments and preferences, and the held-out ones of its evaluation.

    Of a round that is at work, or was interrupted, it shows what is committed so far.
    """
    spare_pandas()
    from flows.analysis import queries
    from flows.registry.catalog import TABLE_ALIASES, existing_store, run_at_round
    from flows.registry.judge_usage import judge_usage, usage_lines
    from flows.registry.packing_check import untried_lengths

    store, stage = existing_store(root), TABLE_ALIASES.get(table.value, table.value)
    run, number = run_at_round(store, source, in_progress=True)
    columns = tables.readable_columns(stage) if format.is_for_people else None
    rows = queries.show(
        store, run, number, table=stage, prompt=prompt, limit=limit, where=where, columns=columns, judgments=judgments
    )
    if columns is not None:
        rows = queries.with_questions([run.name], root, rows, full=full)
        rows = [tables.shortened({name: row.get(name) for name in columns}) for row in rows]
    finished = number in run.finished
    partly = "" if finished else ", which is not finished: what is committed so far"
    title = f"{table.value} of {run.name}@{number}" + (f", judged again as '{judgments}'" if judgments else "")
    tables.print_rows(rows, title=f"{title}{partly}", format=format, empty="no row fits", full=full)
    if partly and not format.is_for_people:
        typer.echo(f"{title}{partly}", err=True)
    if not format.is_for_people:
        return
    if finished and (why := run.round_entry(number).meta.get("no_update")):
        Console().print(f"round {number} had no update: {why}", markup=False, style="yellow")
    for line in usage_lines(judge_usage(run, number)) if "judgments" in stage else ():
        Console().print(f"judges of round {number}: {line}", markup=False)
    if untried := untried_lengths(run):
        typer.echo(f"policy: {untried}")


@app.command()
def path(
    source: RunAtRound,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="completions, judgments, preferences, prompts, ...")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Print the committed files of a round's table, one per line, for DuckDB, polars or datasets.

    They are paths, or URIs if the runs lie in a bucket. A glob over the directory would also find files that a killed
    process left behind.
    """
    from flows.registry.catalog import committed_files, existing_store, location, run_at_round

    store = existing_store(root)
    for file in committed_files(*run_at_round(store, source), table):
        typer.echo(location(store, file))


@app.command()
def sql(
    run: RunName,
    statement: Annotated[
        str,
        typer.Argument(
            metavar="SELECT", help='such as "select round, avg(score) from judgments group by 1 order by 1"'
        ),
    ],
    full: Full = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Ask in SQL (DuckDB's): tables of all rounds, each with a column 'round', and 'rounds' with their metrics."""
    spare_pandas()
    from flows.analysis import queries

    rows = queries.sql(run, root, statement)
    shown = rows[:_MOST_ROWS] if format is Format.table else rows
    tables.print_rows(shown, title=run, format=format, empty="no row fits", full=full)
    if len(rows) > len(shown):
        typer.echo(f"{len(rows) - len(shown)} more rows: add LIMIT, or --format json for all of them")


@app.command()
def history(
    run: RunName,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="id of a prompt, or the beginning of it")],
    full: Full = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Show every completion of a prompt, round after round, with its score, and which were preferred."""
    spare_pandas()
    from flows.analysis import queries

    asked, rows = queries.history(run, root, prompt)
    if format.is_for_people:
        prompt_row = {"prompt_id": asked["prompt_id"], "prompt": asked["text"]}
        (prompt_row,) = queries.with_questions([run], root, [prompt_row], full=full)
        Console().print(visible(prompt_row["prompt"]), markup=False, highlight=False, soft_wrap=True)
    shown = [
        {
            "round": row["round"], "sampled": "held out" if row["held_out"] else "training",
            "candidate": row["candidate"], "score": row["score"],
            "preferred": "best" if row["preferred"] else "worst" if row["rejected"] else None, "text": row["text"],
        }
        for row in rows
    ]  # fmt: skip
    tables.print_rows(
        shown, title=f"Completions of {asked['prompt_id']} by {run}", empty="no completion yet", format=format,
        records=rows, document={**asked, "answers": rows}, full=full,
    )  # fmt: skip


@app.command()
def scores(run: RunName, training: Training = False, root: Root = DEFAULT_ROOT, format: Output = Format.table) -> None:
    """Show how the scores of each round are distributed."""
    spare_pandas()
    from flows.analysis import queries

    rows = queries.scores(run, root, training=training)
    names = ["round", "judged", "mean", "p05", "median", "p95"]
    names[2:2] = ["without_score"] if any(row["without_score"] for row in rows) else []
    shown = [{**{name: row[name] for name in names}, "histogram": _bars(row["histogram"])} for row in rows]
    tables.print_rows(shown, title=f"Scores of {run}", format=format, empty="nothing was judged yet", records=rows)
    if format.is_for_people and rows and rows[0]["low"] is not None:
        typer.echo(f"histograms from {rows[0]['low']:.4g} to {rows[0]['high']:.4g}")


@app.command()
def margins(
    run: RunName, limit: Limit = 5, full: Full = False, root: Root = DEFAULT_ROOT, format: Output = Format.table
) -> None:
    """Show the preferences with the largest and with the smallest margins of all rounds."""
    spare_pandas()
    from flows.analysis import queries

    rows = queries.margins(run, root, limit)
    shown = queries.with_questions([run], root, rows, full=full) if format.is_for_people else rows
    shown = [tables.shortened(row, "kind") for row in shown]
    tables.print_rows(
        shown, title=f"Margins of {run}", format=format, empty="no preference yet", records=rows, full=full
    )


@app.command()
def repeats(
    run: RunName,
    training: Training = False,
    same_tokens: Annotated[bool, typer.Option("--same-tokens", help="compare token ids, in place of the text")] = False,
    limit: Limit = 10,
    full: Full = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Show the completions that several rounds gave: a policy that repeats itself."""
    spare_pandas()
    from flows.analysis import queries

    rows = queries.repeats(run, root, limit, training=training, same_tokens=same_tokens)
    shown = [{**row, "rounds": " ".join(map(str, row["rounds"]))} for row in rows]
    empty = "no two rounds gave the same completion"
    tables.print_rows(shown, title=f"Repeated by {run}", format=format, empty=empty, records=rows, full=full)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="RUN@A", help="a run and one of its rounds, such as demo@1")],
    after: Annotated[str, typer.Argument(metavar="RUN@B", help="another round, of the same run or of another one")],
    training: Training = False,
    limit: Limit = 10,
    full: Full = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Show what changed between two rounds for each prompt: scores, best completions, preferences; largest first."""
    spare_pandas()
    from flows.analysis import queries

    rows = queries.diff(before, after, root, training=training)
    shown = rows[:limit]
    if format.is_for_people:
        shown = queries.with_questions([before, after], root, shown, full=full)
    shown = [tables.shortened(row, *(() if training else ("preference",))) for row in shown]
    empty = "neither round has completions"
    tables.print_rows(shown, title=f"{before} to {after}", format=format, empty=empty, records=rows, full=full)
    if format.is_for_people:
        typer.echo(_summary(rows))


@app.command()
def recipes(format: Output = Format.table) -> None:
    """List the recipes that rondo brings along: 'rondo run NAME' runs one."""
    from flows.registry.shipped_files import described_recipes

    rows = described_recipes()
    shown = [{"recipe": row["recipe"], "description": row["description"]} for row in rows]
    tables.print_rows(shown, title="Recipes", format=format, empty="none", records=rows)


def print_rounds(run: str, rounds: Sequence["RoundSummary"], format: Format = Format.table) -> None:
    """Prints a row for each round, and the alarms of all rounds below."""
    from flows.registry.round_summary import rows_of

    tables.print_rows(
        rows_of(rounds), title=f"Run {run}", format=format, empty="no round is finished yet",
        records=[summary.model_dump(mode="json") for summary in rounds],
    )  # fmt: skip
    if not format.is_for_people:
        return
    console = Console()
    judges = list(dict.fromkeys(summary.judge for summary in rounds))
    if len(judges) > 1:
        console.print(f"rewards do not compare across judges: {', then '.join(judges)}", markup=False, style="yellow")
    if rounds and rounds[0].base_rate:
        console.print(f"round 0: {rounds[0].base_rate}", markup=False)
    for summary in rounds:
        for alarm in summary.alarms:
            console.print(f"alarm in round {summary.round}: {alarm}", markup=False, style="yellow")


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    from statistics import fmean

    there, preferences = (Counter(row[name] for row in rows) for name in ("there", "preference"))
    changes = [row["change"] for row in rows if row["change"] is not None]
    text = f"{there['both']} prompts in both, {there['new']} new, {there['gone']} gone"
    if changes:
        rose, fell = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        text += f"; scores: {rose} rose, {fell} fell, mean change {fmean(changes):+.4g}"
    known = [f"{count} {name}" for name, count in preferences.most_common() if name is not None]
    return text + (f"; preferences: {', '.join(known)}" if known else "")


def _bars(counts: Sequence[int]) -> str:
    """Draws a histogram in one line, scaled to the largest count; each count above zero has a visible bar."""
    highest = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in counts)
