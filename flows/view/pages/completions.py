"""Completions of one round or of all: a table that is searched, filtered and sorted, a page at a time."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.view.filters import FACETS, FIELDS, PAGE_SIZE, RANGES, Field, Filter, text_of, where
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.statements import Statements
from flows.view.terminal import root_option
from storage.queries.sql import table_files

_EXCERPT, _BEFORE = 400, 60
"""Letters of a completion that the table shows, and how many of them stand before the first hit of a search."""
_QUESTION = 160
_MOST_VALUES = 40
"""Links in a facet; there may be more rounds than that."""
_COLUMNS = (
    "round",
    "kind",
    "prompt",
    "text",
    "score",
    "length",
    "ratio",
    "margin",
    "role",
    "finish",
    "status",
    "judge",
)

# So many different combinations of values are few: each facet is counted from them.
_COUNTS = "SELECT {facets}, count(*) AS n FROM answers WHERE {where} GROUP BY ALL"

_ROWS = """
    WITH asked AS (SELECT * FROM answers WHERE {where} ORDER BY {order} LIMIT {size} OFFSET {offset}),
    cut AS (
        SELECT *, greatest(strpos(lower(text), lower(coalesce($first, ''))) - {before}, 1) AS start FROM asked
    ), questions AS (
        SELECT prompt_id, any_value(left(question, {question})) AS question FROM prompts
        WHERE prompt_id IN (SELECT prompt_id FROM asked) GROUP BY prompt_id
    )
    SELECT round, kind, prompt_id, candidate, score, tokens, finish_reason, status, judge, role, margin, drop_reason,
        log_ratio, tied, substr(text, start, {excerpt}) AS text, start > 1 AS cut_before,
        length(text) >= start + {excerpt} AS cut_after, question
    FROM cut LEFT JOIN questions USING (prompt_id) ORDER BY {order}"""


@dataclass(frozen=True)
class Choice:
    """A value of a facet: how many completions have it, and the query of the filter with it, or without it."""

    label: str
    count: int
    query: Mapping[str, str]
    chosen: bool


@dataclass(frozen=True)
class Facet:
    """The values of a field that the completions have.

    Attributes:
        more: the number of values that are left out.
    """

    title: str
    choices: Sequence[Choice]
    more: int


def page(opened: OpenRun, asked: Filter) -> Page:
    """Shows a page of the completions that a filter asks for."""
    tables = opened.tables
    conditions, parameters = where(asked.scanned)
    counts = tables.ask(
        _COUNTS.format(facets=", ".join(facet.column for facet in FACETS), where=conditions), parameters
    )
    total = sum(row["n"] for row in counts if _fits(row, asked))
    conditions, parameters = where(asked.conditions)
    sql = _ROWS.format(
        where=conditions, order=asked.order(FIELDS[asked.sort].column), size=PAGE_SIZE, offset=asked.offset,
        before=_BEFORE, excerpt=_EXCERPT, question=_QUESTION,
    )  # fmt: skip
    rows = tables.ask(sql, {**parameters, "first": asked.words[0] if asked.words else None})
    statements = Statements(opened.name, root_option(opened.store), set(table_files(opened.run)), opened.judge_order)
    values = {
        "asked": asked,
        "total": total,
        "first": asked.offset + 1,
        "last": asked.offset + len(rows),
        "previous": _page(asked, asked.page - 1) if asked.page > 1 else None,
        "next": _page(asked, asked.page + 1) if asked.offset + PAGE_SIZE < total else None,
        "rows": rows,
        "columns": [_heading(FIELDS[name], asked) for name in _COLUMNS],
        "facets": list(_facets(counts, asked)),
        "active": list(_active(asked)),
        "kept": {name: text for name, text in asked.query.items() if name in asked.chosen or name == "sort"},
        "ranges": RANGES,
        "bounds": {name: text_of(value) for name, value in asked.bounds.items()},
        "hits": pattern(asked.words),
        "sql": statements.sql(asked),
        "command": statements.command(asked, total),
    }
    return Page("completions.html.j2", f"Completions of {opened.name}", values, run=opened.name, tab="Completions")


def pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    """Returns what finds these words in a text, the longest first; None if there are none."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)), re.IGNORECASE) if words else None


def _page(asked: Filter, number: int) -> dict[str, str]:
    return asked.without().query | ({"page": str(number)} if number > 1 else {})


def _fits(row: Mapping[str, Any], asked: Filter, but: str = "") -> bool:
    return all(row[FIELDS[name].column] == value for name, value in asked.chosen.items() if name != but)


def _facets(counts: Sequence[Mapping[str, Any]], asked: Filter) -> Iterator[Facet]:
    """Yields the facets: each counts what the rest of the filter leaves, so that one value can be put for another."""
    for facet in FACETS:
        found: Counter[Any] = Counter()
        for row in counts:
            if _fits(row, asked, but=facet.name):
                found[row[facet.column]] += row["n"]
        if facet.name in asked.chosen:
            found[asked.chosen[facet.name]] += 0
        known = {value: count for value, count in found.items() if value is not None or facet.absent}
        if set(known) - {None}:
            choices = [_choice(facet, value, count, asked) for value, count in _in_order(known)]
            shown = [choice for place, choice in enumerate(choices) if place < _MOST_VALUES or choice.chosen]
            yield Facet(facet.title, shown, len(choices) - len(shown))


def _in_order(found: Mapping[Any, int]) -> list[tuple[Any, int]]:
    """Sorts the newest round first, and other values by how many have them; those that have none come last."""
    return sorted(
        found.items(),
        key=lambda item: (item[0] is None, -item[0] if type(item[0]) is int else -item[1], str(item[0])),
    )


def _choice(facet: Field, value: Any, count: int, asked: Filter) -> Choice:
    chosen = facet.name in asked.chosen and asked.chosen[facet.name] == value
    other = asked.without(facet.name) if chosen else asked.with_(facet.name, value)
    return Choice(facet.absent if value is None else text_of(value), count, other.query, chosen)


def _active(asked: Filter) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields what the filter asks for beside its facets, each with the query without it."""
    if asked.words:
        yield f"“{' '.join(asked.words)}”", asked.without("q").query
    for bounded in RANGES:
        ends = {sign: f"{bounded.name}_{end}" for sign, end in (("≥", "min"), ("≤", "max"))}
        for sign, name in ends.items():
            if name in asked.bounds:
                yield f"{bounded.title} {sign} {asked.bounds[name]:.6g}", asked.without(name).query


def _heading(column: Field, asked: Filter) -> dict[str, Any]:
    sort = ("descending" if asked.down else "ascending") if column.name == asked.sort else None
    return {"name": column.name, "title": column.title, "query": asked.sorted_by(column.name).query, "sort": sort}
