"""A round: what it sampled and preferred, how scores, margins and lengths are distributed, and where its time went."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flows.host.text import counted
from flows.registry.round_summary import RoundSummary, start_among
from flows.report.advice import Advice, advice
from flows.report.rendering import NOT_MEASURED, number
from flows.report.sections import Figure, Section, where_time_goes
from flows.report.timeline import Timeline, timeline
from flows.view.filters import FIELDS, Filter
from flows.view.rendering import Page
from flows.view.round_charts import Bin, histogram, scatter
from flows.view.site import OpenRun
from flows.view.tables import KINDS
from flows.view.terminal import root_option
from storage.errors import NotCommittedError
from storage.queries.memory import MemoryTables

_BINS = 24
_MOST_POINTS = 800
"""In the scatter: each takes 0.1 ms to draw, and is 240 bytes of the page."""
_MOST_TIED = 50
_QUESTION = 200

_ROUND = "SELECT * FROM rounds WHERE round ="

_COUNTS = """
    WITH of_prompts AS (
        SELECT kind, prompt_id, count(*) AS completions, bool_or(tied) AS tied FROM answers
        WHERE round = $round GROUP BY ALL
    )
    SELECT kind, count(*) AS prompts, sum(completions)::BIGINT AS completions, min(completions) AS fewest,
        max(completions) AS most, count(*) FILTER (tied) AS tied
    FROM of_prompts GROUP BY kind ORDER BY kind = 'training' DESC, kind"""

_PREFERENCES = """
    SELECT count(*) FILTER (kind <> 'dropped') AS kept, count(DISTINCT prompt_id) AS prompts,
        count(DISTINCT prompt_id) FILTER (kind <> 'dropped') AS preferring, avg(margin) AS margin
    FROM preferences WHERE round = $round"""

# Of several pairs of a prompt some may be dropped, and each of its completions be in one that is not.
_DROPPED = """
    WITH dropped AS (
        SELECT prompt_id, max(drop_reason) AS reason FROM preferences WHERE round = $round AND kind = 'dropped'
        GROUP BY prompt_id
    )
    SELECT reason, count(*) AS n,
        bool_or(prompt_id IN (SELECT prompt_id FROM answers WHERE round = $round AND role = 'dropped')) AS shown
    FROM dropped GROUP BY reason ORDER BY n DESC, reason"""

# The smallest and largest value of a bin are the bounds of the filter that has just its completions. Whole numbers have
# bins of whole width, so that none has more of them than its neighbour.
# Values that differ by rounding alone share one.
_BINNED = """
    WITH known AS (
        SELECT {column}::DOUBLE AS value FROM answers
        WHERE round = $round AND kind = $kind AND isfinite({column}) AND ($role IS NULL OR role = $role)
    ), range AS (
        SELECT min(value) AS low, max(value) AS high, avg(value) AS mean,
            CASE WHEN $whole THEN ceil((high - low + 1) / $bins)
                 WHEN high - low > 1e-9 * greatest(abs(low), abs(high)) THEN (high - low) / $bins ELSE 0 END AS width
        FROM known
    )
    SELECT CASE WHEN width > 0 THEN least(floor((value - low) / width), $bins - 1) ELSE 0 END AS bin, count(*) AS n,
        min(value) AS first, max(value) AS last, any_value(low) AS low, any_value(width) AS width,
        any_value(mean) AS mean
    FROM known, range GROUP BY bin ORDER BY bin"""

_POINTS = """
    SELECT tokens, score, prompt_id AS to, count(*) OVER () AS total FROM answers
    WHERE round = $round AND kind = $kind AND isfinite(score)
    ORDER BY hash(prompt_id, candidate) LIMIT $most"""

_TIED = """
    WITH tied AS (
        SELECT prompt_id, any_value(score) AS score, count(*) AS completions, count(DISTINCT text) AS texts
        FROM answers WHERE round = $round AND kind = $kind AND tied GROUP BY prompt_id ORDER BY prompt_id LIMIT $most
    )
    SELECT t.*,
        (SELECT any_value(left(p.question, $letters)) FROM prompts AS p WHERE p.prompt_id = t.prompt_id) AS question
    FROM tied AS t ORDER BY texts DESC, prompt_id"""


@dataclass(frozen=True)
class Tile:
    """A number that sums up.

    Attributes:
        query: of the completions that it counts; None if it counts none.
    """

    label: str
    value: str
    details: Sequence[str] = ()
    query: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Alarm:
    """What a round complains of, what that means, and the query of the completions that show it."""

    sentence: str
    advice: Advice | None
    query: Mapping[str, str] | None


@dataclass(frozen=True)
class Histogram:
    """A chart of bins, which are links; the same as a list for who cannot see or press them."""

    figure: Figure
    bins: Sequence[Bin]


@dataclass(frozen=True)
class _Asked:
    """A question about the completions of one kind in a round."""

    tables: MemoryTables
    round: int
    kind: str

    def __call__(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return self.tables.ask(sql, {"round": self.round, "kind": self.kind, **parameters})


def page(opened: OpenRun, asked: int) -> Page:
    """Shows a round, also one that is not finished.

    Raises:
        NotCommittedError: nothing was committed in it.
    """
    shown = opened.state
    run, begun = opened.run, opened.begun
    if asked not in begun:
        has = f"it has rounds {begun[0]} to {begun[-1]}" if begun else "nothing was committed in it yet"
        raise NotCommittedError(f"there is no round {asked} of run '{run.name}': {has}")
    summary = next((summary for summary in opened.rounds if summary.round == asked), None)
    times, tables, place = timeline(run, [asked]), opened.tables, begun.index(asked)
    counts = {row["kind"]: row for row in tables.ask(_COUNTS, {"round": asked})}
    kind = "training" if "training" in counts else "held-out"
    of_round = _Asked(tables, asked, kind)
    values = {
        "round": asked,
        "finished": summary is not None,
        "at_work": run.state == "running",
        "no_update": summary.no_update if summary else None,
        "gate": summary.gate if summary else None,
        "start": start_among(opened.rounds, asked),
        "previous": begun[place - 1] if place else None,
        "next": begun[place + 1] if place + 1 < len(begun) else None,
        "kind": kind,
        "kinds": {name: row["completions"] for name, row in counts.items()},
        "tiles": [*_tiles(of_round, counts), *_rewards(summary, asked), *_times(summary, times)],
        "alarms": [_alarm(sentence, asked) for sentence in summary.alarms] if summary else [],
        "histograms": [*_histograms(of_round, counts)],
        "scatter": _scatter(of_round),
        "tied": of_round(_TIED, most=_MOST_TIED, letters=_QUESTION),
        "tied_total": counts[kind]["tied"] if kind in counts else 0,
        "sections": list[Section](where_time_goes(times)),
        "sql": f"{_ROUND} {asked}" if summary else None,
        "command": f"rondo show {run.name}@{asked} --table {KINDS[kind]}completions{root_option(opened.store)}",
    }
    title = f"Round {asked} of {run.name}"
    return Page("round.html.j2", title, values, run=run.name, tab="Run", state="" if summary else shown)


def _tiles(of_round: _Asked, counts: Mapping[str, Mapping[str, Any]]) -> Iterator[Tile]:
    """Yields what was sampled, preferred and dropped."""
    query = {"round": str(of_round.round)}
    for kind, row in counts.items():
        fewest, most = row["fewest"], row["most"]
        each = f"{most}" if fewest == most else f"{fewest} to {most}"
        details = [f"{row['completions']:,} completions", f"K = {each}"]
        yield Tile(f"Prompts, {kind}", f"{row['prompts']:,}", details, query | {"kind": kind})
    (found,) = of_round.tables.ask(_PREFERENCES, {"round": of_round.round})
    if not found["prompts"]:
        return
    preferring = f"from {found['preferring']:,} of {counted(found['prompts'], 'prompt')}"
    margin = f"mean margin {number(found['margin'])}"
    chosen = query | {"role": "chosen"}
    yield Tile("Preferences kept", f"{found['kept']:,}", [preferring, margin], chosen if found["kept"] else None)
    for row in of_round.tables.ask(_DROPPED, {"round": of_round.round}):
        reason = {} if row["reason"] is None else {"drop": row["reason"]}
        label = f"Dropped: {row['reason'] or 'no reason given'}"
        dropped = query | {"role": "dropped"} | reason if row["shown"] else None
        yield Tile(label, f"{row['n']:,}", [f"of {counted(found['prompts'], 'prompt')}"], dropped)


def _rewards(summary: RoundSummary | None, asked: int) -> Iterator[Tile]:
    if summary is None:
        return
    held_out = {"round": str(asked), "kind": "held-out", "sort": "-score"}
    error = "one scored answer" if summary.reward_se is None else f"±{summary.reward_se:.3f} standard error"
    yield Tile("Held-out reward", f"{summary.reward:+.3f}", [error, f"judge {summary.judge}"], held_out)
    if summary.kl_initial is not None:
        yield Tile("KL to round 0", f"{summary.kl_initial:.2f}", ["nats per sequence"], held_out | {"sort": "-ratio"})


def _times(summary: RoundSummary | None, times: Timeline | None) -> Iterator[Tile]:
    """Yields the speed of sampling, and how long each part was at work; of a round at work, from its pieces so far."""
    lanes = times.lanes if times is not None else []
    if summary is not None:
        speed: float | None = summary.tokens_per_second
        seconds = {name.replace("hand over", "weight sync"): spent for name, spent in summary.seconds.items()}
    else:
        rates = [lane.tokens_per_second for lane in lanes if lane.part == "sample" and lane.tokens_per_second]
        speed, seconds = (sum(rates) if rates else None), {lane.name: lane.busy for lane in lanes}
    yield Tile("Tokens/s", NOT_MEASURED if speed is None else f"{speed:,.0f}", ["while sampling"])
    total = sum(seconds.values())
    if total:
        longest_first = sorted(seconds.items(), key=lambda item: -item[1])
        longest, spent = longest_first[0]
        said = [f"{name}: {time:.1f} s" for name, time in longest_first]
        yield Tile("Most of the time", f"{longest} {spent / total:.0%}", said)


def _alarm(sentence: str, asked: int) -> Alarm:
    known = advice(sentence)
    query = {"round": str(asked), **dict(known.look)} if known is not None and known.look else None
    return Alarm(sentence, known, query)


def _histograms(of_round: _Asked, counts: Mapping[str, Any]) -> Iterator[Histogram]:
    which = "sampled for training" if of_round.kind == "training" else "held out"
    held_out = _Asked(of_round.tables, of_round.round, "held-out")
    yield from _histogram(of_round, "score", "Scores", f"Of the completions {which}, by the first judge.", "score")
    yield from _histogram(
        of_round, "length", "Lengths", f"Of the completions {which}, end of sequence included.", "tokens", whole=True
    )
    yield from _histogram(
        of_round, "margin", "Margins", "Of the chosen completions: their score less that of the rejected one.",
        "margin", role="chosen",
    )  # fmt: skip
    yield from _histogram(
        held_out, "ratio", "Log-ratio, held-out",
        "Log-probability of each held-out completion under the policy, less that under the initial one; their mean is "
        "the KL divergence.", "nats per sequence",
    )  # fmt: skip
    if of_round.kind != "held-out" and "held-out" in counts:
        yield from _histogram(held_out, "score", "Scores, held-out", "Of the completions that are held out.", "score")


def _histogram(
    of_round: _Asked, name: str, title: str, caption: str, unit: str, *, role: str | None = None, whole: bool = False
) -> Iterator[Histogram]:
    column = FIELDS[name].column
    rows = of_round(_BINNED.format(column=column), role=role, whole=whole, bins=_BINS)
    if not rows:
        return
    common = {"round": of_round.round, "kind": of_round.kind, **({"role": role} if role else {})}
    bins = []
    for row in rows:
        # A whole number stands in the middle of its bin, and so does a single value, which has no width.
        width, low = row["width"] or 1.0, row["low"] - (0.5 if whole or not row["width"] else 0)
        asked = Filter(chosen=common, bounds={f"{name}_min": row["first"], f"{name}_max": row["last"]})
        left = low + row["bin"] * width
        bins.append(Bin(left, left + width, row["n"], row["first"], row["last"], urlencode(asked.query)))
    chart = histogram(title, bins, rows[0]["mean"], unit)
    yield Histogram(
        Figure(title, f"{caption} A bar leads to its completions; the upright mark is the mean.", chart), bins
    )


def _scatter(of_round: _Asked) -> Figure | None:
    points = of_round(_POINTS, most=_MOST_POINTS)
    if not points:
        return None
    total = points[0]["total"]
    sampled = f" A sample of {len(points):,} of {total:,}." if total > len(points) else ""
    drawn = [{name: point[name] for name in ("tokens", "score", "to")} for point in points]
    title = "Reward against length"
    return Figure(title, f"A point is a completion, and leads to its prompt.{sampled}", scatter(title, drawn))
