"""The judges over the rounds: where they disagree, what turns with the order, what they could not say, and drift."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.registry.judge_usage import judge_usage
from flows.registry.round_summary import RoundSummary
from flows.report.sections import Figure
from flows.view.filters import literal
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.stored_rows import prefix_of
from flows.view.tables import COMPARED, KINDS
from flows.view.terminal import root_option
from pipeline.errors import ConfigError
from pipeline.judges.llm import LlmConfig
from pipeline.usage import Usage

_MOST = 50
"""Rows of a list."""
_SHORT = 200
"""Letters of a completion in a list."""
_TRUST = "Whether the judge can be trusted"
"""The report's section on the judges; see flows/report/sections.py."""

# The place of a completion is the share of the others of its round that a judge puts below it; ties count half.
_DISAGREEMENTS = """
    WITH judged AS (
        SELECT round, prompt_id, candidate, judge, score FROM {table} WHERE {where} AND isfinite(score)
    ), scored AS (
        SELECT a.round, a.prompt_id, a.candidate, a.score AS score_a, b.score AS score_b
        FROM judged AS a JOIN judged AS b USING (round, prompt_id, candidate)
        WHERE a.judge = {a} AND b.judge = {b}
    ), placed AS (
        SELECT *,
            (rank() OVER (PARTITION BY round ORDER BY score_a) - 1
                + (count(*) OVER (PARTITION BY round, score_a) - 1) / 2)
                / nullif(count(*) OVER (PARTITION BY round) - 1, 0) AS place_a,
            (rank() OVER (PARTITION BY round ORDER BY score_b) - 1
                + (count(*) OVER (PARTITION BY round, score_b) - 1) / 2)
                / nullif(count(*) OVER (PARTITION BY round) - 1, 0) AS place_b
        FROM scored
    )
    SELECT round, prompt_id, candidate, score_a, score_b, place_a, place_b, {opposite} AS opposite
    FROM placed WHERE {opposite} OR place_a <> place_b
    ORDER BY opposite DESC, abs(place_a - place_b) DESC, round DESC, prompt_id, candidate
    LIMIT {limit}"""

_OPPOSITE = "(score_a IN (0, 1) AND score_b IN (0, 1) AND score_a <> score_b)"

_TEXTS = """
    SELECT round, prompt_id, candidate, left(text, $letters) AS text FROM completions
    WHERE kind = $kind AND list_contains($prompts, prompt_id)"""

_JUDGED = "SELECT kind, judge, count(score) AS scores FROM judgments GROUP BY ALL"

_STATUSES = """
    SELECT round, '{kind}' AS kind, judge, status, count(*) AS completions
    FROM {table} WHERE {where} AND status <> 'ok' GROUP BY ALL"""

# What a filter of completions cannot say: it knows but the verdicts that count, and those of another judge do not.
_SAMPLES = """SELECT round, '{kind}' AS kind, prompt_id, candidate, judge, status, score
FROM {table} WHERE round = {round} AND judge = {judge}{status}
ORDER BY prompt_id, candidate"""

_OF_STATUS = ("kind", "round", "judge", "status")

_FLIPPED_ROUNDS = """
    SELECT round, sum(flips) / nullif(sum(comparisons), 0) AS flipped FROM judgments
    WHERE kind = 'training' GROUP BY round"""

# Each comparison is counted by both of its completions.
_FLIPS = """
    {given}SELECT round, kind, prompt_id, judge, sum(flips) / 2 AS flips, sum(comparisons) / 2 AS comparisons
    FROM {table} WHERE {where} GROUP BY ALL HAVING sum(flips) > 0
    ORDER BY sum(flips) / sum(comparisons) DESC, flips DESC, round DESC, prompt_id, judge LIMIT {limit}"""

_PAID_SQL = """SELECT round, judge_usage
FROM rounds
ORDER BY round"""

_UNION = "\n        UNION ALL"
_COMPARED = """
        SELECT round, '{kind}' AS kind, prompt_id, judge, {columns} FROM {table}"""


@dataclass(frozen=True)
class _Round:
    """What is known of the judges in a round; None is not measured."""

    round: int
    summary: RoundSummary | None
    flipped: float | None
    unscored: int


@dataclass(frozen=True)
class _Paid:
    """What the language models that judge took.

    Attributes:
        asks: whether a judge of the run asks one.
        priced: whether the recipe says what one costs.
        rows: by round and judge; of versions that did not record it there are none.
    """

    asks: bool
    priced: bool
    rows: Sequence[tuple[int, str, Usage]]

    @classmethod
    def of(cls, opened: OpenRun) -> "_Paid":
        """Finds it in the commits of a run, of the round that is at work too."""
        configs = [part for judge in opened.recipe.judges for part in judge.parts() if isinstance(part, LlmConfig)]
        rows = [
            (round, name, usage) for round in opened.begun for name, usage in judge_usage(opened.run, round).items()
        ]
        return cls(bool(configs or rows), any(config.price_per_million for config in configs), rows)


@dataclass(frozen=True)
class _Pair:
    """Two judges of the same completions.

    Attributes:
        kind: which completions.
        a, b: their names.
        verdicts: whether both say right or wrong, so that two scores can be opposites.
        round: the only round that is looked at; None for all.
    """

    kind: str
    a: str
    b: str
    verdicts: bool
    round: int | None

    def rows(self, opened: OpenRun) -> list[dict[str, Any]]:
        """Returns the completions on which the two differ most, each with the beginning of its text."""
        sql = self._filled("judgments", "kind = $kind", "$a", "$b")
        rows = opened.tables.ask(sql, {"kind": self.kind, "a": self.a, "b": self.b})
        prompts = sorted({row["prompt_id"] for row in rows})
        given = {"kind": self.kind, "prompts": prompts, "letters": _SHORT + 1}
        found = opened.tables.ask(_TEXTS, given) if rows else []
        texts = {(row["round"], row["prompt_id"], row["candidate"]): row["text"] for row in found}
        return [
            {**row, "text": texts.get((row["round"], row["prompt_id"], row["candidate"]), "")} for row in rows
        ]  # fmt: skip

    def elsewhere(self, opened: OpenRun) -> dict[str, str]:
        """Returns the same question for ``rondo sql``, and what shows the judgments in the terminal."""
        table = f"{prefix_of(self.kind)}judgments"
        a, b = literal(self.a), literal(self.b)
        source = opened.name if self.round is None else f"{opened.name}@{self.round}"
        where = shlex.quote(f"judge IN ({a}, {b})")
        return {
            "sql": _outdented(self._filled(table, "true", a, b)),
            "command": f"rondo show {source} --table {table} --where {where}{root_option(opened.store)}",
        }

    def _filled(self, table: str, where: str, a: str, b: str) -> str:
        only = "" if self.round is None else f" AND round = {self.round}"
        opposite = _OPPOSITE if self.verdicts else "false"
        return _DISAGREEMENTS.format(table=table, where=where + only, a=a, b=b, opposite=opposite, limit=_MOST)


def page(opened: OpenRun, round: int | None, kind: str | None, judges: tuple[str | None, str | None]) -> Page:
    """Shows what is known of a run's judges.

    Args:
        round: the only round whose samples are listed; all by default.
        kind, judges: which completions, and which two judges of theirs, are compared.

    Raises:
        ConfigError: the run has no two such judges of such completions.
    """
    shown = opened.state
    tables, pair = opened.tables, _pair(opened, round, kind, judges)
    statuses = tables.ask(_statuses("judgments", {kind: f"kind = '{kind}'" for kind in KINDS}))
    rounds = _rounds(opened, statuses)
    known = [found.summary for found in rounds if found.summary is not None]
    values = {
        "names": opened.recipe.judge_names, "round": round, "rounds": rounds, "pair": pair,
        "statuses": [{**row, "samples": _samples(**{name: row[name] for name in _OF_STATUS})} for row in statuses],
        "agreeing": _names(known, "agreement"),
        "drifting": {name: _samples("held-out", 0, name) for name in _names(known, "judge_drift")},
        "drifted": [(summary.round, said) for summary in reversed(known) for said in summary.drifted],
        "figures": _figures(opened), "disagreements": pair.rows(opened) if pair else [], "choices": _choices(opened),
        "flips": tables.ask(_flips("judgments", round)), "flips_sql": _flips_sql(opened, round),
        "most": _MOST, "short": _SHORT, "paid": _Paid.of(opened), "paid_sql": _PAID_SQL,
        "elsewhere_pair": pair.elsewhere(opened) if pair else None, "statuses_sql": _statuses_sql(opened),
        "again": opened.run.annexes,
        "command": f"rondo rounds {opened.name}{root_option(opened.store)}",
    }  # fmt: skip
    return Page("judges.html.j2", f"Judges of {opened.name}", values, run=opened.name, tab="Judges", state=shown)


def _choices(opened: OpenRun) -> dict[str, list[str]]:
    """Returns the kinds of completions that several judges have scored, and these judges in the recipe's order."""
    order = {name: place for place, name in enumerate(opened.recipe.judge_names)}
    scored = [row for row in opened.tables.ask(_JUDGED) if row["scores"]]
    found = {
        kind: sorted((row["judge"] for row in scored if row["kind"] == kind), key=lambda name: order.get(name, 1000))
        for kind in ("held-out", "served", "training", "gate")
    }
    return {kind: names for kind, names in found.items() if len(names) > 1}


def _pair(
    opened: OpenRun, round: int | None, kind: str | None, judges: tuple[str | None, str | None]
) -> _Pair | None:  # fmt: skip
    """Chooses the two judges: those that are named, or else the first two; None if no completions have two."""
    choices = _choices(opened)
    if not choices and kind is None and judges == (None, None):
        return None
    kind = kind or next(iter(choices), "held-out")
    prefix_of(kind)
    names = choices.get(kind, [])
    a = judges[0] or next((name for name in names if name != judges[1]), None)
    b = judges[1] or next((name for name in names if name != a), None)
    if a is None or b is None or a == b or not {a, b} <= set(names):
        has = f"those of {kind} completions are {', '.join(names)}" if names else f"{kind} completions have no two"
        raise ConfigError(f"judges {a} and {b} cannot be compared: {has}; give two of them as a and b")
    configs = opened.judges_of_round(max(opened.begun, default=0) if round is None else round)
    verdicts = all(name in configs and configs[name].GIVES_VERDICTS for name in (a, b))
    return _Pair(kind, a, b, verdicts, round)


def _rounds(opened: OpenRun, statuses: Sequence[Mapping[str, Any]]) -> list[_Round]:
    summaries = {summary.round: summary for summary in opened.rounds}
    flipped = {row["round"]: row["flipped"] for row in opened.tables.ask(_FLIPPED_ROUNDS)}
    unscored: dict[int, int] = {}
    for row in statuses:
        unscored[row["round"]] = unscored.get(row["round"], 0) + row["completions"]
    return [
        _Round(number, summaries.get(number), flipped.get(number), unscored.get(number, 0)) for number in opened.begun
    ]


def _names(rounds: Sequence[RoundSummary], field: str) -> list[str]:
    """Returns the judges that a field of the rounds' summaries names, in the order in which they first come."""
    return list(dict.fromkeys(name for summary in rounds for name in getattr(summary, field)))


def _figures(opened: OpenRun) -> list[Figure]:
    return next((section.figures for section in opened.sections if section.title == _TRUST), [])


def _flips(table: str, round: int | None, given: str = "") -> str:
    return _FLIPS.format(given=given, table=table, where="true" if round is None else f"round = {round}", limit=_MOST)


def _flips_sql(opened: OpenRun, round: int | None) -> str | None:
    """Returns the question of the verdicts that turn for ``rondo sql``; none if nothing was judged yet."""
    parts = [
        _COMPARED.format(kind=kind, columns=COMPARED, table=f"{KINDS[kind]}judgments") for kind in _judged(opened)
    ]  # fmt: skip
    given = f"WITH compared AS ({_UNION.join(parts)}\n    )\n    "
    return _outdented(_flips("compared", round, given)) if parts else None


def _statuses(table: str, kinds: Mapping[str, str], prefixed: bool = False) -> str:
    parts = [
        _STATUSES.format(kind=kind, table=(KINDS[kind] if prefixed else "") + table, where=where)
        for kind, where in kinds.items()
    ]
    return "\n    UNION ALL".join(parts) + "\n    ORDER BY round, kind, judge, status"


def _statuses_sql(opened: OpenRun) -> str | None:
    """Returns the question of the verdicts without a score for ``rondo sql``; none if nothing was judged yet."""
    kinds = _judged(opened)
    return _outdented(_statuses("judgments", dict.fromkeys(kinds, "true"), prefixed=True)) if kinds else None


def _judged(opened: OpenRun) -> list[str]:
    """Returns the kinds of completions that were judged, which are those that have a table."""
    return [kind for kind, prefix in KINDS.items() if opened.run.entries(stage=f"{prefix}judgments")]


def _samples(kind: str, round: int, judge: str, status: str | None = None) -> str:
    """Returns the question, as ``rondo sql`` takes it, of what a judge said of these completions of a round."""
    said = "" if status is None else f" AND status = {literal(status)}"
    return _SAMPLES.format(
        kind=kind, table=f"{KINDS[kind]}judgments", round=round, judge=literal(judge), status=said
    )  # fmt: skip


def _outdented(sql: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in sql.strip("\n").splitlines())
