"""The training judge over the rounds: whether held-out judges agree, whether it drifts, whether it is exploited."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np

from pipeline.evaluation.metrics import Estimate, Scores

MOST_COMPARED = 1024
"""Held-out prompts among which the orders of two judges are compared: half a million pairs."""
SIGNIFICANT = 3.0
"""Standard errors beyond which a change is no chance: once in 740 rounds on one side of a judge that stays as it is."""


def agreement(scores: Scores, others: Scores) -> float | None:
    """Returns the share of pairs of prompts that both judges order alike, of those that neither sees as equal.

    1/2 is chance. Only the first ``MOST_COMPARED`` prompts count to which both gave a score; None if no pair is left.
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
    """Estimates a judge's mean change of score over the prompts that have one on both sides; None if no prompt has."""
    changes = [
        score - earlier
        for prompt_id, score in after.items()
        if score is not None and (earlier := before.get(prompt_id)) is not None
    ]
    if not changes:
        return None
    error = stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.nan
    return Estimate(mean=fmean(changes), standard_error=error, count=len(changes))


def overoptimization_gap(
    training: Scores, training_initial: Scores, held_out: Scores, held_out_initial: Scores
) -> float | None:
    """Says how much further the training judge's scores have risen than a held-out judge's since round 0.

    Each judge's mean change is divided by the standard deviation of its scores over the prompts of round 0, so that the
    two are on one scale; None if one of them has no spread there.
    """
    rises = []
    for after, before in ((training, training_initial), (held_out, held_out_initial)):
        known = [score for score in before.values() if score is not None]
        found, spread = change(before, after), stdev(known) if len(known) > 1 else 0.0
        if found is None or not spread:
            return None
        rises.append(found.mean / spread)
    return rises[0] - rises[1]


def over_optimised(
    training: str, others: Sequence[str], now: Mapping[str, Scores], before: Mapping[str, Scores], since: str
) -> list[str]:
    """Writes a sentence for each held-out judge that fell significantly while the training judge's score rose.

    Both changes are paired by prompt, and significant at ``SIGNIFICANT`` standard errors; see arXiv:2210.10760 for what
    it means that a judge is optimised beyond what it knows.
    """
    rise = change(before[training], now[training])
    if rise is None or not rise.mean > SIGNIFICANT * rise.standard_error:
        return []
    sentences = []
    for name in others:
        fall = change(before[name], now[name])
        if fall is not None and fall.mean < -SIGNIFICANT * fall.standard_error:
            sentences.append(
                f"{name} fell by {-fall.mean:.3g} ± {fall.standard_error:.2g} since {since}, while {training}, the "
                f"training judge, rose by {rise.mean:.3g} ± {rise.standard_error:.2g}"
            )
    return sentences


def drifted(name: str, moved: Estimate) -> str | None:
    """Writes a sentence if a judge scores the same answers differently now; None if it does not."""
    if abs(moved.mean) > SIGNIFICANT * moved.standard_error:
        error = f"{moved.mean:+.3g} ± {moved.standard_error:.2g}"
        return f"{name} scores the same {moved.count} answers of round 0 differently now, by {error} on average"
    return None
