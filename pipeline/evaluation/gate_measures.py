"""A measure of the gate: what a round's policy scores, and whether that is less, or more, than the best round did."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from pipeline.errors import DataError
from pipeline.evaluation.metrics import Scores
from pipeline.evaluation.paired_test import sign_flip_test


@dataclass(frozen=True)
class Measured:
    """What a round scores by one measure, over the prompts of the regression set or windows of the text.

    Attributes:
        mean: its mean score.
        best_mean: that of the best round on the same prompts; None of a round with which the comparing begins.
        prompts: how many there are.
        unscored: how many of the round's answers have no score, and count as the lowest score of either round.
        loss, gain: one-sided p-values, see `pipeline.evaluation.paired_test`.
    """

    mean: float
    prompts: int
    unscored: int
    best_mean: float | None = None
    loss: float | None = None
    gain: float | None = None


def measure(scores: Scores, best: Scores | None) -> Measured:
    """Compares the scores of a round with those of the best one, by prompt id.

    An answer without a score counts as the lowest of either round: what a judge cannot score is not let pass.

    Raises:
        DataError: no answer has a score, or the two are of different prompts.
    """
    known = [score for found in (scores, best or {}) for score in found.values() if score is not None]
    if not known:
        raise DataError("the gate has no score of any answer: mend the judge, or choose another one")
    own = _filled(scores, min(known))
    unscored = sum(score is None for score in scores.values())
    if best is None:
        return Measured(fmean(own.values()), len(own), unscored)
    before = _filled(best, min(known))
    if own.keys() != before.keys():
        raise DataError("the gate has to compare the same prompts, and the best round answered others")
    test = sign_flip_test([own[prompt_id] - before[prompt_id] for prompt_id in own])
    return Measured(fmean(own.values()), len(own), unscored, fmean(before.values()), test.loss, test.gain)


def _filled(scores: Scores, lowest: float) -> Mapping[str, float]:
    return {prompt_id: lowest if score is None else score for prompt_id, score in scores.items()}
