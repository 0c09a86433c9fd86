"""The commands that look into a run's data over all its rounds: sql, history, scores, margins, repeats, diff."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.analysis import queries
from flows.cli import tables
from flows.cli.options import Json, Root, RunName
from flows.host.text import visible
from flows.registry.catalog import DEFAULT_ROOT

app = typer.Typer()

Training = Annotated[
    bool, typer.Option("--training", help="the answers sampled for training, in place of those to held-out prompts")
]
Limit = Annotated[int, typer.Option(min=1, help="most rows")]
_MOST_ROWS = 200
_BARS = " ▁▂▃▄▅▆▇█"


@app.command()
def sql(
    run: RunName,
    statement: Annotated[
        str,
        typer.Argument(
            metavar="SELECT", help='such as "select round, avg(score) from judgments group by 1 order by 1"'
        ),
    ],
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Ask in SQL (DuckDB's): tables of all rounds, each with a column 'round', and 'rounds' with their metrics."""
    rows = queries.sql(run, root, statement)
    if json:
        tables.print_json(rows)
        return
    tables.print_rows(rows[:_MOST_ROWS], title=run, as_json=False, empty="no row fits")
    if len(rows) > _MOST_ROWS:
        typer.echo(f"{len(rows) - _MOST_ROWS} more rows: add LIMIT, or --json for all of them")


@app.command()
def history(
    run: RunName,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="id of a prompt, or the beginning of it")],
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Show every answer to a prompt, round after round, with its score, and which were preferred."""
    asked, rows = queries.history(run, root, prompt)
    if json:
        tables.print_json({**asked, "answers": rows})
        return
    Console().print(visible(asked["text"]), markup=False, highlight=False, soft_wrap=True)
    shown = [
        {
            "round": row["round"], "sampled": "held out" if row["held_out"] else "training",
            "candidate": row["candidate"], "score": row["score"],
            "preferred": "best" if row["preferred"] else "worst" if row["rejected"] else None, "text": row["text"],
        }
        for row in rows
    ]  # fmt: skip
    tables.print_rows(shown, title=f"Answers of {run} to {asked['prompt_id']}", as_json=False, empty="no answer yet")


@app.command()
def scores(run: RunName, training: Training = False, root: Root = DEFAULT_ROOT, json: Json = False) -> None:
    """Show how the scores of each round are distributed."""
    rows = queries.scores(run, root, training=training)
    if json:
        tables.print_json(rows)
        return
    names = ["round", "judged", "mean", "p05", "median", "p95"]
    names[2:2] = ["without_score"] if any(row["without_score"] for row in rows) else []
    shown = [{**{name: row[name] for name in names}, "histogram": _bars(row["histogram"])} for row in rows]
    tables.print_rows(shown, title=f"Scores of {run}", as_json=False, empty="nothing was judged yet")
    if rows and rows[0]["low"] is not None:
        typer.echo(f"histograms from {rows[0]['low']:.4g} to {rows[0]['high']:.4g}")


@app.command()
def margins(run: RunName, limit: Limit = 5, root: Root = DEFAULT_ROOT, json: Json = False) -> None:
    """Show the preferences with the largest and with the smallest margins of all rounds."""
    rows = queries.margins(run, root, limit)
    if json:
        tables.print_json(rows)
        return
    shown = [_without({**row, "prompt_id": row["prompt_id"][:8]}, "kind") for row in rows]
    tables.print_rows(shown, title=f"Margins of {run}", as_json=False, empty="no preference yet")


@app.command()
def repeats(
    run: RunName,
    training: Training = False,
    same_tokens: Annotated[
        bool, typer.Option("--same-tokens", help="the same token ids, in place of the same text")
    ] = False,
    limit: Limit = 10,
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Show the answers that several rounds gave: a policy that repeats itself."""
    rows = queries.repeats(run, root, limit, training=training, same_tokens=same_tokens)
    if json:
        tables.print_json(rows)
        return
    shown = [{**row, "rounds": " ".join(map(str, row["rounds"]))} for row in rows]
    tables.print_rows(shown, title=f"Repeated by {run}", as_json=False, empty="no two rounds gave the same answer")


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="RUN@A", help="a run and one of its rounds, such as demo@1")],
    after: Annotated[str, typer.Argument(metavar="RUN@B", help="another round, of the same run or of another one")],
    training: Training = False,
    limit: Limit = 10,
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Show what changed between two rounds for each prompt: scores, best answers, preferences; the largest first."""
    rows = queries.diff(before, after, root, training=training)
    if json:
        tables.print_json(rows)
        return
    hidden = () if training else ("preference",)
    shown = [_without({**row, "prompt_id": row["prompt_id"][:8]}, *hidden) for row in rows[:limit]]
    tables.print_rows(shown, title=f"{before} to {after}", as_json=False, empty="neither round has answers")
    typer.echo(_summary(rows))


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    there, preferences = (Counter(row[name] for row in rows) for name in ("there", "preference"))
    changes = [row["change"] for row in rows if row["change"] is not None]
    text = f"{there['both']} prompts in both, {there['new']} new, {there['gone']} gone"
    if changes:
        rose, fell = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        text += f"; scores: {rose} rose, {fell} fell, mean change {fmean(changes):+.4g}"
    known = [f"{count} {name}" for name, count in preferences.most_common() if name is not None]
    return text + (f"; preferences: {', '.join(known)}" if known else "")


def _bars(counts: Sequence[int]) -> str:
    """A histogram in one line, as high as the largest count; what is not zero is seen."""
    highest = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in counts)


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
