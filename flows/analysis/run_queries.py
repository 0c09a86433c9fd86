"""Questions over several rounds, and over two runs: what became of a prompt, of the scores, of the completions.

Completions of held-out prompts lie in tables whose names begin with ``eval_``, those sampled for training in the
others. Held-out completions can have several judges. ``judges`` names the one whose scores count in each round; if it
names none, the first by name counts.
What is read is checked page by page; see ``storage/tables/shards.py``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from storage.errors import NotCommittedError, QueryError
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.duckdb import clear_errors, locked_connection
from storage.queries.sql import Source, ask

Judges = Mapping[int, str]
BINS = 16
"""Bins of the histograms that :func:`scores` gives."""

# One judgment for each candidate: by the judge that counts in its round.
_SCORED = """scored AS (
    SELECT j.round, prompt_id, candidate, score, status FROM {prefix}judgments AS j
    JOIN (
        SELECT j.round, coalesce(min(_judges.judge), min(j.judge)) AS judge
        FROM {prefix}judgments AS j LEFT JOIN _judges USING (round) GROUP BY j.round
    ) AS counts ON counts.round = j.round AND counts.judge = j.judge
)"""

_HISTORY = """
    WITH {scored}, preferred AS (
        SELECT round, prompt_id, candidates FROM {prefix}preferences WHERE prompt_id = $prompt AND kind <> 'dropped'
    )
    SELECT c.round, {held_out} AS held_out, c.candidate, s.score, s.status, c.finish_reason,
        (SELECT count(*) FROM preferred AS p WHERE p.round = c.round AND p.candidates[1] = c.candidate) AS preferred,
        (SELECT count(*) FROM preferred AS p WHERE p.round = c.round AND p.candidates[-1] = c.candidate) AS rejected,
        c.text
    FROM {prefix}candidates AS c LEFT JOIN scored AS s
        ON s.round = c.round AND s.prompt_id = c.prompt_id AND s.candidate = c.candidate
    WHERE c.prompt_id = $prompt ORDER BY c.round, c.candidate"""

_SCORES = """
    WITH {scored}, finite AS (SELECT round, CASE WHEN isfinite(score) THEN score END AS score FROM scored),
    edges AS (SELECT min(score) AS low, max(score) AS high FROM finite),
    binned AS (
        SELECT round, least(coalesce(floor((score - low) / nullif(high - low, 0) * {bins}), 0), {bins} - 1) AS bin
        FROM finite, edges WHERE score IS NOT NULL
    ),
    counted AS (
        SELECT rounds.round, bins.bin, count(binned.bin) AS n FROM (SELECT DISTINCT round FROM finite) AS rounds
        CROSS JOIN range({bins}) AS bins(bin) LEFT JOIN binned ON binned.round = rounds.round AND binned.bin = bins.bin
        GROUP BY ALL
    ),
    histograms AS (SELECT round, list(n ORDER BY bin) AS histogram FROM counted GROUP BY round)
    SELECT round, count(*) AS judged, count(*) - count(score) AS without_score, avg(score) AS mean,
        stddev_samp(score) AS std, min(score) AS min, quantile_cont(score, 0.05) AS p05,
        quantile_cont(score, 0.25) AS p25, median(score) AS median, quantile_cont(score, 0.75) AS p75,
        quantile_cont(score, 0.95) AS p95, max(score) AS max, any_value(low) AS low, any_value(high) AS high,
        any_value(histogram) AS histogram
    FROM finite JOIN histograms USING (round), edges GROUP BY round ORDER BY round"""

_MARGINS = """
    WITH kept AS (SELECT * FROM preferences WHERE kind <> 'dropped' AND isfinite(margin)),
    ends AS (
        (SELECT 'largest' AS which, * FROM kept ORDER BY margin DESC, round, prompt_id, candidates LIMIT $limit)
        UNION ALL
        (SELECT 'smallest' AS which, * FROM kept ORDER BY margin, round, prompt_id, candidates LIMIT $limit)
    )
    SELECT which, round, prompt_id, kind, margin, candidates FROM ends"""

_TEXTS = """
    SELECT e.which, e.round, e.prompt_id, e.kind, e.margin, p.text AS prompt, best.text AS chosen,
        worst.text AS rejected
    FROM _ends AS e LEFT JOIN prompts AS p ON p.prompt_id = e.prompt_id
    LEFT JOIN candidates AS best
        ON best.round = e.round AND best.prompt_id = e.prompt_id AND best.candidate = e.candidates[1]
    LEFT JOIN candidates AS worst
        ON worst.round = e.round AND worst.prompt_id = e.prompt_id AND worst.candidate = e.candidates[-1]
    ORDER BY e.which, CASE e.which WHEN 'largest' THEN -margin ELSE margin END, e.round, e.prompt_id, e.candidates"""

_REPEATS = """
    SELECT list_sort(list(DISTINCT round)) AS rounds, count(*) AS times, count(DISTINCT prompt_id) AS prompts,
        min(text) AS text
    FROM {prefix}candidates GROUP BY {same} HAVING count(DISTINCT round) > 1
    ORDER BY len(rounds) DESC, times DESC, text LIMIT $limit"""


_SIDE = """
    WITH {scored}, answers AS (
        SELECT c.prompt_id, count(*) AS answers, avg(score) AS score,
            arg_max(text, coalesce(score, '-inf'::DOUBLE)) AS best
        FROM {prefix}candidates AS c LEFT JOIN scored AS s
            ON s.prompt_id = c.prompt_id AND s.candidate = c.candidate GROUP BY c.prompt_id
    ), widest AS (
        SELECT prompt_id, unnest(max_by(p, coalesce(margin, '-inf'::DOUBLE))) FROM {prefix}preferences AS p
        GROUP BY prompt_id
    )
    SELECT a.*, w.kind, chosen.text AS chosen, rejected.text AS rejected FROM answers AS a
    LEFT JOIN widest AS w ON w.prompt_id = a.prompt_id
    LEFT JOIN {prefix}candidates AS chosen
        ON chosen.prompt_id = a.prompt_id AND chosen.candidate = w.candidates[1]
    LEFT JOIN {prefix}candidates AS rejected
        ON rejected.prompt_id = a.prompt_id AND rejected.candidate = w.candidates[-1]"""

_DIFF = """
    SELECT coalesce(a.prompt_id, b.prompt_id) AS prompt_id,
        CASE WHEN a.prompt_id IS NULL THEN 'new' WHEN b.prompt_id IS NULL THEN 'gone' ELSE 'both' END AS there,
        a.score AS score_a, b.score AS score_b, b.score - a.score AS change,
        CASE
            WHEN a.kind IS NULL OR b.kind IS NULL THEN NULL
            WHEN a.kind <> b.kind THEN a.kind || ' to ' || b.kind
            WHEN a.kind = 'dropped' OR (a.chosen = b.chosen AND a.rejected = b.rejected) THEN 'same'
            WHEN a.chosen = b.rejected AND a.rejected = b.chosen THEN 'reversed'
            ELSE 'other answers'
        END AS preference,
        p.text AS prompt, a.best AS answer_a, b.best AS answer_b
    FROM _a AS a FULL JOIN _b AS b ON b.prompt_id = a.prompt_id
    LEFT JOIN _p AS p ON p.prompt_id = coalesce(a.prompt_id, b.prompt_id)
    ORDER BY abs(b.score - a.score) DESC NULLS LAST, 1"""

# The columns of preferences in a round that has none, such as round 0, or among the tables of the evaluation.
_NO_PREFERENCES = pa.schema({
    "round": pa.int32(), "prompt_id": pa.string(), "kind": pa.string(), "candidates": pa.list_(pa.int32()),
    "margin": pa.float64(),
})  # fmt: skip

_TABLES = ("candidates", "judgments", "preferences")
_PROMPTS = Source("prompts")


def history(store: Store, run: Run, prompt: str, judges: Judges) -> pa.Table:
    """Lists every completion of a prompt by round, with its score and how often it was preferred or rejected.

    Args:
        prompt: its id, or the beginning of it.

    Raises:
        QueryError: no prompt of the run begins so, or several do.
        NotCommittedError: the run has no candidates yet.
    """
    prompt_id = find_prompt(store, run, prompt)["prompt_id"]
    parts = []
    for prefix, held_out in (("", "false"), ("eval_", "true")):
        if run.entries(stage=f"{prefix}candidates"):
            sql = _fill(_HISTORY, prefix, held_out=held_out)
            sources, counts = _sources(prefix, _TABLES), _judges(judges if prefix else {})
            parts.append(ask(store, run, sql, sources, {"prompt": prompt_id}, counts))
    if not parts:
        raise NotCommittedError(f"run '{run.name}' has no candidates yet: nothing was sampled")
    return pa.concat_tables(parts).sort_by([("round", "ascending"), ("held_out", "ascending")])


def find_prompt(store: Store, run: Run, prompt: str) -> dict[str, Any]:
    """Finds the one prompt whose id begins so: its id, text and split. QueryError if none does, or several do."""
    sql = "SELECT prompt_id, text, split FROM prompts WHERE starts_with(prompt_id, $prompt) ORDER BY 1 LIMIT 5"
    found: list[dict[str, Any]] = ask(store, run, sql, [_PROMPTS], {"prompt": prompt}).to_pylist()
    exact = [row for row in found if row["prompt_id"] == prompt]
    if len(found) != 1 and not exact:
        several = f"several prompts, such as {', '.join(row['prompt_id'] for row in found)}" if found else "no prompt"
        raise QueryError(f"'{prompt}' is the beginning of {several} of run '{run.name}': give the id of one")
    return (exact or found)[0]


def scores(store: Store, run: Run, judges: Judges, *, held_out: bool) -> pa.Table:
    """Says how the scores of each round are distributed: moments, quantiles, and a histogram.

    The histograms of all rounds have the same :data:`BINS` bins of equal width, from ``low`` to ``high``.
    """
    prefix = _prefix(held_out)
    sql, counts = _fill(_SCORES, prefix, bins=str(BINS)), _judges(judges if held_out else {})
    return ask(store, run, sql, _sources(prefix, ["judgments"]), beside=counts)


def margins(store: Store, run: Run, limit: int) -> pa.Table:
    """Lists the preferences with the largest margins, largest first, and with the smallest, smallest first.

    Raises:
        NotCommittedError: the run has no preferences yet.
    """
    if not run.entries(stage="preferences"):
        raise NotCommittedError(f"run '{run.name}' has no preferences yet")
    ends = ask(store, run, _MARGINS, _sources("", ["preferences"]), {"limit": limit})
    rounds = set(ends["round"].to_pylist()) or None
    return ask(store, run, _TEXTS, [*_sources("", ["candidates"], rounds), _PROMPTS], beside={"_ends": ends})


def repeats(store: Store, run: Run, limit: int, *, held_out: bool, same: str = "text") -> pa.Table:
    """Lists completions that several rounds gave, those of most rounds first: they show a policy that repeats itself.

    Args:
        same: "text" or "token_ids": what must be the same.
    """
    prefix = _prefix(held_out)
    sql = _fill(_REPEATS, prefix, same=same)
    return ask(store, run, sql, _sources(prefix, ["candidates"]), {"limit": limit})


def diff(
    store: Store, before: tuple[Run, int], after: tuple[Run, int], judges: tuple[Judges, Judges], *, held_out: bool
) -> pa.Table:
    """Compares two rounds, of one run or of two: a row for each prompt, the largest change first.

    ``score_a`` and ``score_b`` are means over the candidates, ``answer_a`` and ``answer_b`` the best ones, and
    ``there`` is "both", "new" or "gone". ``preference`` says what became of the preference with the widest margin:
    "same", "reversed", "other answers", "dropped to pair" and so on.

    Raises:
        NotCommittedError: one of the rounds has no such candidates.
    """
    prefix = _prefix(held_out)
    sides = [
        ask(
            store, run, _fill(_SIDE, prefix), _sources(prefix, _TABLES, {number}),
            beside=_judges(counts if held_out else {}),
        )
        for (run, number), counts in zip((before, after), judges, strict=True)
    ]  # fmt: skip
    texts = "SELECT prompt_id, text FROM prompts"
    prompts = [ask(store, run, texts, [_PROMPTS]) for run, _ in (before, after)]
    with locked_connection({"_x": pa.concat_tables(prompts)}) as connection:
        distinct = connection.sql("SELECT prompt_id, min(text) AS text FROM _x GROUP BY 1").to_arrow_table()
    with locked_connection({"_a": sides[0], "_b": sides[1], "_p": distinct}) as connection, clear_errors([]):
        return connection.sql(_DIFF).to_arrow_table()


def _prefix(held_out: bool) -> str:
    return "eval_" if held_out else ""


def _fill(sql: str, prefix: str, **words: str) -> str:
    return sql.format(prefix=prefix, scored=_SCORED.format(prefix=prefix), **words)


def _sources(prefix: str, names: Iterable[str], rounds: set[int] | None = None) -> list[Source]:
    return [Source(f"{prefix}{name}", rounds, _NO_PREFERENCES if name == "preferences" else None) for name in names]


def _judges(judges: Judges) -> dict[str, pa.Table]:
    columns = [pa.array(list(judges), pa.int32()), pa.array(list(judges.values()), pa.string())]
    return {"_judges": pa.table(columns, names=["round", "judge"])}
