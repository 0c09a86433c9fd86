"""The commands that ask what another judge would say of what is stored: judge, rejudge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import tables
from flows.cli.options import Commands, Format, Output, Root, RunAtRound, TakeOver
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.analysis.rejudge import Rejudged
    from flows.analysis.what_if import ChangedPair, WhatIf

app = Commands("Judges and labels")

_JUDGE_HELP = "MODULE:FUNCTION, FILE.py:FUNCTION, a kind of judge, or a YAML file with a recipe or a judge"


@app.command("judge")
def judge_(
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help=_JUDGE_HELP)],
    source: RunAtRound,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a field of the judge: judge.target=20")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="most completions")] = 20,
    full: Annotated[bool, typer.Option("--full", help="whole texts; else they are shortened to fit")] = False,
    root: Root = DEFAULT_ROOT,
    format: Output = Format.table,
) -> None:
    """Try a judge on completions of a round, before a run is made with it; exit status 1 if it scores none."""
    from flows.analysis.try_judge import try_judge
    from flows.host.progress import Display

    with Display() as display:
        found = try_judge(judge, source, root, set_ or [], limit, display)
    records = [asdict(answer) for answer in found.answers]
    rows = [tables.shortened(_filled(record, records), "seconds") for record in records]
    what = "held-out completions" if found.held_out else "completions"
    title = f"{found.judge} on {len(rows)} {what} of {found.run}@{found.round}"
    empty = "the round has no completions"
    tables.print_rows(rows, title=title, format=format, records=records, empty=empty, full=full)
    if format.is_for_people and rows:
        seconds = sum(answer.seconds for answer in found.answers)
        scores = [answer.score for answer in found.answers if answer.score is not None]
        spread = f"; scores from {min(scores):.4g} to {max(scores):.4g}" if scores else ""
        typer.echo(f"{len(scores)} of {len(rows)} have a score{spread}; {seconds / len(rows):.3g} s for each")
    found.check()


@app.command("rejudge")
def rejudge_(
    source: Annotated[
        str, typer.Argument(metavar="RUN[@ROUNDS]", help="whose completions: demo, demo@3, demo@1-4, demo@1,3-5")
    ],
    judge: Annotated[
        str | None, typer.Option(metavar="JUDGE", help=f"{_JUDGE_HELP}; the run's own, as it is now, if empty")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a field of judge or preferences: preferences.rule=all_pairs"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="what its judgments are kept under beside the run; the judge's name if empty")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it takes, and judge nothing")] = False,
    limit: Annotated[int, typer.Option(min=0, help="most changed pairs to show")] = 10,
    root: Root = DEFAULT_ROOT,
    take_over: TakeOver = False,
    format: Output = Format.table,
) -> None:
    """Judge completions of a run again, without sampling, and say what that changes: pairs, agreement, correlations.

    What was judged lies beside the run, which does not change: 'rondo show RUN@N --judgments NAME' reads it. To give
    the same command again goes on where it was interrupted.
    """
    from flows.analysis.rejudge import rejudge
    from flows.analysis.sources import find_rounds
    from flows.analysis.what_if import what_if
    from flows.host.progress import Display
    from flows.host.signals import orderly_end
    from flows.registry.catalog import existing_store
    from flows.registry.judge_source import with_judge
    from flows.view.terminal import root_option

    store = existing_store(root)
    asked = find_rounds(store, source)
    with (
        Display() as display,
        orderly_end("interrupted: what is judged is kept, and the same command goes on from there"),
    ):
        named = with_judge(asked.run, judge, set_ or [])
        found = rejudge(store, asked.run, asked.rounds, named, name, display, dry_run=dry_run, take_over=take_over)
        if not dry_run:
            with display.doing("comparing with what the run has"):
                rounds, changed = what_if(store, found)
    if dry_run:
        _print_costs(found, format)
    else:
        _print_changes(found, rounds, changed, limit, format, root_option(store))


def _print_costs(found: "Rejudged", format: Format) -> None:
    rows = [
        {
            "round": cost.round, "completions": cost.completions, "judged already": cost.judged, "to judge": cost.left,
            **({} if cost.requests is None else {"requests": cost.requests.new, "cached": cost.requests.cached}),
        }
        for cost in found.costs
    ]  # fmt: skip
    names = list(dict.fromkeys(name for row in rows for name in row))
    records = [asdict(cost) | {"left": cost.left} for cost in found.costs]
    tables.print_rows(
        [{name: row.get(name, 0) for name in names} for row in rows], title=_title(found), format=format,
        records=records, document=_document(found) | {"costs": records},
    )  # fmt: skip
    if format.is_for_people:
        typer.echo(
            "nothing was judged" if found.name else "the run was judged by this very judge: there is nothing to judge"
        )


def _print_changes(
    found: "Rejudged", rounds: Sequence["WhatIf"], changed: Sequence["ChangedPair"], limit: int, format: Format,
    at: str,
) -> None:  # fmt: skip
    show = _shown_by(found, at)
    records = [asdict(row) | ({} if row.round is None else {"show": show(row.round)}) for row in rounds]
    pairs = [asdict(pair) | dict(_addresses(found, pair, show)) for pair in changed]
    document = _document(found) | {"rounds": records, "pairs": pairs}
    tables.print_rows(
        [_figures(row) for row in rounds], title=_title(found), format=format, records=records, document=document
    )
    if not format.is_for_people:
        return
    typer.echo(
        "pairs, prompts, reward and length: before -> after; length and the correlations are Spearman's and Kendall's "
        "tau-b within prompts; kappa is over all pairs of completions of a prompt"
    )
    if changed and limit:
        rows = [tables.shortened(asdict(pair)) for pair in changed[:limit]]
        tables.print_rows(rows, title=f"Pairs that change, {len(rows)} of {len(changed)}", format=format)
        typer.echo(f"a pair with its texts: {show(changed[0].round)} --prompt {changed[0].prompt_id[:8]}")
    elif not changed:
        typer.echo("no pair changes")


def _figures(row: "WhatIf") -> dict[str, Any]:
    """Returns what people are shown of a round."""
    return {
        "round": "all" if row.round is None else row.round,
        "completions": row.completions,
        "reward": _two(row.reward),
        "prompts": _two(row.prompts),
        "pairs": _two(row.pairs),
        **{name: getattr(row, name) for name in ("same", "flipped", "appeared", "vanished")},
        "agree": "-" if row.agreement is None else f"{row.agreement:.1%}",
        **{name: getattr(row, name) for name in ("kappa", "spearman", "kendall")},
        "length": _two(row.length),
    }


def _two(values: tuple[float | None, float | None]) -> str:
    return " -> ".join("-" if value is None else f"{value:.3g}" for value in values)


def _title(found: "Rejudged") -> str:
    by = f"judged again as '{found.name}'" if found.name else "under its own judge"
    return f"{found.run.name} {by} (version {found.version})"


def _document(found: "Rejudged") -> dict[str, Any]:
    return {
        "run": found.run.name, "name": found.name, "judge": found.recipe.judge.model_dump(mode="json"),
        "version": found.version, "rule": found.recipe.preferences.rule,
    }  # fmt: skip


def _shown_by(found: "Rejudged", at: str) -> Callable[[int], str]:
    """Returns what makes the command that shows a round's completions with these scores."""
    option = f" --judgments {found.name}" if found.name else ""
    return lambda number: f"rondo show {found.run.name}@{number}{option}{at}"


def _addresses(found: "Rejudged", pair: "ChangedPair", show: Callable[[int], str]) -> dict[str, str]:
    """Says where a pair can be read: as a command, and as the address of its prompt on the page."""
    from flows.view.addresses import served

    return {
        "show": f"{show(pair.round)} --prompt {pair.prompt_id}",
        "view": served("run", found.run.name, "prompt", pair.prompt_id),
    }


def _filled(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a record without the columns that are empty in all."""
    return {name: value for name, value in record.items() if any(other[name] is not None for other in records)}
