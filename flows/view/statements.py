"""A filter over the store's tables: the statement that ``rondo sql`` takes, and the shortest command for it."""

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from flows.view.filters import FIELDS, PAGE_SIZE, Field, Filter, Source, literal
from flows.view.tables import KINDS, JudgeOrder

_COMPLETIONS = "text, finish_reason, len(token_ids) AS tokens"
_VERDICTS = "judge, score, status"
# Of several judges, the first counts, see JudgeOrder; of a prompt's pairs, first those that a completion wins.
_PARTS: Mapping[Source, str] = {
    "completions": "{completions}",
    "verdicts": """SELECT * FROM (
    {verdicts}
    ) QUALIFY rank() OVER (PARTITION BY round, kind ORDER BY {first}list_position({judges}, judge), judge) = 1""",
    "ties": """SELECT round, kind, prompt_id, min(score) = max(score) AS tied
    FROM verdicts GROUP BY ALL HAVING count(score) > 1""",
    "roles": """SELECT c.round, c.kind, c.prompt_id, c.candidate,
        CASE
            WHEN bool_or(p.candidates[1] = c.candidate) THEN 'chosen'
            WHEN bool_or(p.candidates[-1] = c.candidate) THEN 'rejected'
            WHEN bool_or(p.kind = 'dropped') THEN 'dropped'
        END AS role,
        coalesce(
            max(p.margin) FILTER (p.candidates[1] = c.candidate), max(p.margin) FILTER (p.candidates[-1] = c.candidate)
        ) AS margin,
        CASE WHEN NOT bool_or(coalesce(p.candidates[1] = c.candidate OR p.candidates[-1] = c.candidate, false))
            THEN max(p.drop_reason) END AS drop_reason
    FROM completions AS c JOIN preferences AS p ON p.round = c.round AND p.prompt_id = c.prompt_id
    WHERE c.kind = 'training' GROUP BY ALL""",
    "ratios": "SELECT round, 'held-out' AS kind, prompt_id, candidate, policy - initial AS log_ratio FROM eval_logps",
}
_KEYS: Mapping[Source, str] = {"ties": "round, kind, prompt_id"}
_KEY = "round, kind, prompt_id, candidate"
_ALWAYS = ("round", "kind", "prompt", "score", "length", "finish", "text")
_OF_A_ROUND = ("round", "kind")


@dataclass(frozen=True)
class Statements:
    """Writes statements and commands for a run.

    Attributes:
        run: its name.
        root: the option that says where it lies; see `root_option`.
        stages: those that it has committed.
        judges: the first of them that has judged counts.
    """

    run: str
    root: str
    stages: Collection[str]
    judges: JudgeOrder

    def sql(self, asked: Filter) -> str | None:
        """Returns the statement whose rows are those of the filter's page; None if there is nothing to select from."""
        conditions = asked.conditions
        names = dict.fromkeys([*_ALWAYS, *(condition.field.name for condition in conditions), asked.sort])
        fields = [FIELDS[name] for name in names]
        parts = self._parts(asked, fields)
        if "completions" not in parts:
            return None
        column = {field.name: field.column if field.source in parts else "NULL" for field in fields}
        shown = [f"{column[f.name]} AS {f.column}" if column[f.name] != f.column else f.column for f in fields]
        said = [condition.sql(column[condition.field.name], literal(condition.value)) for condition in conditions]
        lines = [
            "WITH " + ", ".join(f"{source} AS (\n    {part}\n)" for source, part in parts.items()),
            f"SELECT candidate, {', '.join(shown)}",
            "FROM completions",
            *(f"LEFT JOIN {part} USING ({_KEYS.get(part, _KEY)})" for part in parts if part != "completions"),
            *([f"WHERE {' AND '.join(said)}"] if said else []),
            f"ORDER BY {asked.order(FIELDS[asked.sort].column)}",
            f"LIMIT {PAGE_SIZE} OFFSET {asked.offset}",
        ]
        return "\n".join(lines)

    def command(self, asked: Filter, total: int) -> str | None:
        """Returns a command that gives the rows: all of them by ``rondo show`` if it can, else by ``rondo sql``.

        Args:
            total: the number of rows of all pages.
        """
        number, kind = (asked.chosen.get(name) for name in _OF_A_ROUND)
        others = [condition for condition in asked.conditions if condition.field.name not in _OF_A_ROUND]
        simple = all(condition.field.shown is not None for condition in others)
        if number is None or kind is None or not (simple and total):  # of a round without any, the former is an error
            sql = self.sql(asked)
            return None if sql is None else f"rondo sql {self.run} {_quoted(sql)}{self.root}"
        said = [condition.sql(str(condition.field.shown), literal(condition.value)) for condition in others]
        where = f" --where {_quoted(' AND '.join(said))}" if said else ""
        table = f"{KINDS[kind]}completions"
        return f"rondo show {self.run}@{number} --table {table}{where} --limit {total}{self.root}"

    def _parts(self, asked: Filter, fields: Iterable[Field]) -> dict[Source, str]:
        """Returns the parts of the statement that these fields need, of those that the run has tables for."""
        kinds = [kind for kind in KINDS if asked.chosen.get("kind") in (None, kind)]
        completions = self._union("candidates", _COMPLETIONS, kinds)
        verdicts = self._union("judgments", _VERDICTS, kinds)
        there = {
            "completions": completions, "verdicts": verdicts, "ties": verdicts,
            "roles": "preferences" in self.stages, "ratios": "eval_logps" in self.stages,
        }  # fmt: skip
        needed = {"completions", *(field.source for field in fields)}
        judges = f"[{', '.join(map(literal, self.judges.names))}]::VARCHAR[]"
        rounds = sorted(self.judges.first.items())
        spans = [list(span) for _, span in groupby(rounds, key=itemgetter(1))]
        cases = (f"WHEN round BETWEEN {span[0][0]} AND {span[-1][0]} THEN {literal(span[0][1])}" for span in spans)
        first = f"judge IS DISTINCT FROM CASE {' '.join(cases)} END, " if spans else ""
        return {
            source: part.format(completions=completions, verdicts=verdicts, judges=judges, first=first)
            for source, part in _PARTS.items()
            if source in needed and there[source]
        }

    def _union(self, base: str, columns: str, kinds: Iterable[str]) -> str:
        selects = (
            f"SELECT round, '{kind}' AS kind, prompt_id, candidate, {columns} FROM {KINDS[kind]}{base}"  # noqa: S608  names of ours
            for kind in kinds
            if f"{KINDS[kind]}{base}" in self.stages
        )
        return "\n    UNION ALL ".join(selects)


def _quoted(sql: str) -> str:
    """Quotes SQL for a shell: between double quotes if nothing in it means anything there, for they read better."""
    return shlex.quote(sql) if set(sql) & set('"$`\\!') else f'"{sql}"'
