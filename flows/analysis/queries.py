"""What the commands that look into a run answer, over the questions of the store."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.analysis import round_tables, run_queries
from flows.analysis.prompt_texts import prompt_texts
from flows.publish import Style
from flows.registry.catalog import REJUDGMENTS, existing_store, parse_source, run_at_round
from pipeline.errors import ConfigError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import files_of
from storage.queries.sql import select

Rows = list[dict[str, Any]]


def show(
    store: Store,
    run: Run,
    number: int,
    *,
    table: str,
    prompt: str | None,
    limit: int,
    where: str | None,
    columns: Sequence[str] | None,
    judgments: str | None = None,
) -> list[dict[str, Any]]:
    """Returns rows of a round's table, joined with what one wants to read beside them; all columns, or these.

    Args:
        judgments: the name under which the round was judged again: these stand in place of its own.

    Raises:
        ConfigError: the table has no judgments of completions for training.
        RunNotFoundError, NotCommittedError: the round was not judged again under this name.
    """
    # A round's own candidates have one judge; the held-out ones have several, and this one's scores are the reward.
    judge = _judge_of_reward(run, number) if table.startswith(("eval_", "served_")) else None
    prompts = next((at for at in range(number, -1, -1) if run.files(at, "gate_prompts")), 0)
    instead = {} if judgments is None else {"judgments": rejudgments(run, number, judgments, table)}
    found = round_tables.query(
        store, run, number, table=table, where=where, prompt=prompt, limit=limit, judge=judge, columns=columns,
        prompts_round=prompts if table.startswith("gate_") else 0, instead=instead,
    )  # fmt: skip
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def rejudgments(run: Run, number: int, name: str, table: str) -> list[FileRef]:
    """Lists the files of what was judged again in a round under a name; raises as `show` does."""
    if table not in ("candidates", "judgments"):
        raise ConfigError(
            f"--judgments {name} has scores of the completions for training: give --table completions or judgments"
        )
    return files_of(run.annex(name), number, REJUDGMENTS)


def _judge_of_reward(run: Run, number: int) -> str:
    if number in run.finished:
        judge: str = run.round_entry(number).meta["judge"]
        return judge
    from flows.registry.resume import recipe_of  # which imports all kinds of judges

    recipe = recipe_of(run)
    return recipe.judge_names[recipe.held_out_judges[0]]


def with_questions(sources: Sequence[str], root: str, rows: Rows, *, full: bool) -> Rows:
    """Returns the rows, with what people read of each prompt in place of what the policy read; see `prompt_texts`.

    Args:
        sources: the runs that the rows are of, as RUN or RUN@ROUND.
    """
    ids = {row["prompt_id"] for row in rows if "prompt" in row}
    if not ids:
        return rows
    store = existing_store(root)
    runs = [store.run(name, intact_part=True) for name in dict.fromkeys(parse_source(source)[0] for source in sources)]
    texts = prompt_texts(store, runs, ids, full=full)
    return [{**row, "prompt": texts[row["prompt_id"]]} if row["prompt_id"] in texts else row for row in rows]


def export(source: str, root: str, to: Path, *, style: Style, truncated: bool, say: Callable[[str], None]) -> int:
    """Writes a round's preferences as a dataset; see ``flows/publish/export.py``."""
    from flows.publish.export import export_preferences

    store = existing_store(root)
    existing, number = run_at_round(store, source)
    return export_preferences(store, existing, number, to, style=style, truncated=truncated, say=say)


def export_tried(source: str, root: str, to: Path, *, style: Style, truncated: bool, say: Callable[[str], None]) -> int:
    """Writes a run's preferences between answers that people tried; see ``flows/publish/export_tried.py``.

    Raises:
        ConfigError: a round is given.
    """
    from flows.publish import export_tried as tried

    name, number = parse_source(source)
    if number is not None or "@" in source:
        raise ConfigError(f"what people tried is of a run, and of no round: give {name} in place of {source}")
    store = existing_store(root)
    return tried.export_tried(store, store.run(name), to, style=style, truncated=truncated, say=say)


def sql(name: str, root: str, statement: str) -> Rows:
    """Returns the rows of one SELECT over the tables of a run."""
    store = existing_store(root)
    return _rows(select(store, store.run(name), statement))


def history(name: str, root: str, prompt: str) -> tuple[dict[str, Any], Rows]:
    """Returns a prompt, and every answer to it in each round."""
    store = existing_store(root)
    run = store.run(name)
    return run_queries.find_prompt(store, run, prompt), _rows(run_queries.history(store, run, prompt, _judges(run)))


def scores(name: str, root: str, *, training: bool) -> Rows:
    """Returns the distribution of the scores of each round."""
    store = existing_store(root)
    run = store.run(name)
    return _rows(run_queries.scores(store, run, _judges(run), held_out=not training))


def margins(name: str, root: str, limit: int) -> Rows:
    """Returns the preferences with the largest and those with the smallest margins, of all rounds."""
    store = existing_store(root)
    return _rows(run_queries.margins(store, store.run(name), limit))


def repeats(name: str, root: str, limit: int, *, training: bool, same_tokens: bool) -> Rows:
    """Returns the answers that several rounds gave."""
    store = existing_store(root)
    same = "token_ids" if same_tokens else "text"
    return _rows(run_queries.repeats(store, store.run(name), limit, held_out=not training, same=same))


def diff(before: str, after: str, root: str, *, training: bool) -> Rows:
    """Says what changed for each prompt between two rounds, of one run or of two."""
    store = existing_store(root)
    sides = run_at_round(store, before), run_at_round(store, after)
    judges = _judges(sides[0][0]), _judges(sides[1][0])
    return _rows(run_queries.diff(store, *sides, judges, held_out=not training))


def _judges(run: Run) -> dict[int, str]:
    """Returns the training judge of each round: a fork may have another one than its parent."""
    return {entry.round: entry.meta["judge"] for entry in run.rounds()}


def _rows(table: pa.Table) -> Rows:
    rows: Rows = table.to_pylist()
    return [{name: None if _is_nan(value) else value for name, value in row.items()} for row in rows]


def _is_nan(value: Any) -> bool:
    # JSON has no such number.
    return isinstance(value, float) and not math.isfinite(value)
