"""Watching the judge: what it leaves open, its bias towards length, whether it drifts, whether it is exploited."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluation import Estimate, Scores
from pipeline.judges.ensemble import relative_ranks
from pipeline.records import components_of

MOST_COMPARED = 1024
"""Held-out prompts among which the orders of two judges are compared: half a million pairs."""
SIGNIFICANT = 3.0
"""Standard errors beyond which a change is no chance: once in 740 rounds on one side of a judge that stays as it is."""


def describe_judgments(candidates: pa.Table, judgments: pa.Table, *, min_margin: float) -> dict[str, Any]:
    """What a round's judgments leave open, and their bias towards length; None where there is nothing to tell from.

    - ``tied``: share of the pairs of judged candidates of a prompt whose scores differ by no more than the margin.
    - ``unparsable``: share of the judgments whose reply could not be read.
    - ``flipped``: share of the comparisons whose verdict turned with the order in which the two were shown.
    - ``length_correlation``: Spearman's correlation of score and length in tokens within prompts: Pearson's of the
      ranks that candidates have among those of their prompt.
    """
    scores, lengths = _by_prompt(candidates, judgments)
    tied = [
        abs(a - b) <= min_margin for prompt_id in scores for a, b in combinations(scores[prompt_id].values(), 2)
    ]  # fmt: skip
    statuses = judgments["status"].to_pylist()
    return {
        "tied": fmean(tied) if tied else None,
        "unparsable": fmean(status == "unparsable" for status in statuses) if statuses else None,
        "flipped": _flipped(judgments),
        "length_correlation": _rank_correlation([
            ([*found.values()], [lengths[prompt_id, index] for index in found]) for prompt_id, found in scores.items()
        ]),
    }  # fmt: skip


def agreement(scores: Scores, others: Scores) -> float | None:
    """Share of the pairs of prompts, of those that neither judge sees as equal, which both put in the same order.

    1/2 is chance. Of the first ``MOST_COMPARED`` prompts that both judges gave a score; None where no pair is left.
    """
    both = [
        (a, b) for prompt_id, a in scores.items() if a is not None and (b := others.get(prompt_id)) is not None
    ]  # fmt: skip
    if len(both) < 2:
        return None
    a_P, b_P = np.array(both[:MOST_COMPARED], dtype=np.float64).T
    rows, columns = np.triu_indices(len(a_P), 1)
    products = np.sign(a_P[rows] - a_P[columns]) * np.sign(b_P[rows] - b_P[columns])
    different = int(np.count_nonzero(products))
    return float((products > 0).sum() / different) if different else None


def change(before: Scores, after: Scores) -> Estimate | None:
    """Mean change of a judge's scores over the prompts that have one on both sides; None where no prompt has."""
    changes = [
        score - earlier
        for prompt_id, score in after.items()
        if score is not None and (earlier := before.get(prompt_id)) is not None
    ]
    if not changes:
        return None
    error = stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.nan
    return Estimate(mean=fmean(changes), standard_error=error, count=len(changes))


def gap(heard: Scores, heard_initial: Scores, held_out: Scores, held_out_initial: Scores) -> float | None:
    """How much further the heard judge's scores have risen than a held-out judge's since round 0.

    Each judge's mean change is divided by the standard deviation of its scores over the prompts of round 0, so that the
    two are on one scale; None where one of them has no spread there.
    """
    rises = []
    for after, before in ((heard, heard_initial), (held_out, held_out_initial)):
        known = [score for score in before.values() if score is not None]
        found, spread = change(before, after), stdev(known) if len(known) > 1 else 0.0
        if found is None or not spread:
            return None
        rises.append(found.mean / spread)
    return rises[0] - rises[1]


def over_optimised(
    heard: str, others: Sequence[str], now: Mapping[str, Scores], before: Mapping[str, Scores], since: str
) -> list[str]:
    """A sentence for each held-out judge that fell significantly while the heard judge's score rose.

    Both changes are paired by prompt, and significant at ``SIGNIFICANT`` standard errors; see arXiv:2210.10760 for what
    it means that a judge is optimised beyond what it knows.
    """
    rise = change(before[heard], now[heard])
    if rise is None or not rise.mean > SIGNIFICANT * rise.standard_error:
        return []
    sentences = []
    for name in others:
        fall = change(before[name], now[name])
        if fall is not None and fall.mean < -SIGNIFICANT * fall.standard_error:
            sentences.append(
                f"{name} fell by {-fall.mean:.3g} ± {fall.standard_error:.2g} since {since}, while {heard}, which "
                f"training hears, rose by {rise.mean:.3g} ± {rise.standard_error:.2g}"
            )
    return sentences


def drifted(name: str, moved: Estimate) -> str | None:
    """A sentence where a judge no longer says of the same answers what it said; None where it does."""
    if abs(moved.mean) > SIGNIFICANT * moved.standard_error:
        error = f"{moved.mean:+.3g} ± {moved.standard_error:.2g}"
        return f"{name} scores the same {moved.count} answers of round 0 differently now, by {error} on average"
    return None


def _by_prompt(
    candidates: pa.Table, judgments: pa.Table
) -> tuple[dict[str, dict[int, float]], dict[tuple[str, int], int]]:
    """Scores of each prompt by candidate, and the length of each candidate in tokens."""
    keys = zip(candidates["prompt_id"].to_pylist(), candidates["candidate"].to_pylist(), strict=True)
    lengths = dict(zip(keys, candidates["tokens"].to_pylist(), strict=True))
    scores: dict[str, dict[int, float]] = {}
    for row in judgments.select(["prompt_id", "candidate", "score", "status"]).to_pylist():
        if row["status"] == "ok" and row["score"] is not None and math.isfinite(row["score"]):
            scores.setdefault(row["prompt_id"], {})[row["candidate"]] = row["score"]
    return scores, lengths


def _flipped(judgments: pa.Table) -> float | None:
    """From the components of judges that compare in both orders, and of ensembles that have such a member."""
    totals = {"flips": 0.0, "comparisons": 0.0}
    for components in judgments["components"].to_pylist():
        for name, value in components_of(components).items():
            if (last := name.rpartition(".")[2]) in totals:
                totals[last] += value
    return totals["flips"] / totals["comparisons"] if totals["comparisons"] else None


def _rank_correlation(groups: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    pairs = [
        (a - 0.5, b - 0.5)
        for scores, lengths in groups
        for a, b in zip(relative_ranks(scores), relative_ranks(lengths), strict=True)
        if a is not None and b is not None
    ]
    norm = math.sqrt(math.fsum(a * a for a, _ in pairs) * math.fsum(b * b for _, b in pairs))
    return math.fsum(a * b for a, b in pairs) / norm if norm else None
