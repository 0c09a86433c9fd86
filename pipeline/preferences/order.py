"""Which of two candidates is better, by how much, and how surely."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from pipeline.config import PreferencesConfig
from pipeline.errors import DataError
from pipeline.judges.support.stated import order_probability
from pipeline.preferences.candidates import Candidate


def soft_label(score_a: float, score_b: float, std_a: float, std_b: float) -> float:
    """Returns the probability that a beats b: 1 or 0 if both are certain, 1/2 if they are also equal."""
    return order_probability(score_a - score_b, math.hypot(std_a, std_b))


def probability(better: Candidate, worse: Candidate, prompt_id: str) -> float | None:
    """Returns the probability that two candidates' order by their values is right; None if the judge's is no number.

    A value is a score less the penalty of length, which is certain: so the difference of the two scores has to be
    above the difference of the penalties. How probable that is follows from what the judge states, the most exact
    first:

    - all orders turned round with one probability: the difference is what the scores say, or the opposite;
    - distributions over levels: all pairs of levels are counted, equal ones half;
    - a probability for the two, see `shifted`;
    - standard deviations, as of independent normal scores: ``Phi((value_a - value_b) / sqrt(std_a**2 + std_b**2))``
      (Thurstone 1927, case III).

    Raises:
        DataError: the judge states none of these.
    """
    difference, shift = better.score - worse.score, better.penalty - worse.penalty
    beats, spread = better.stated.beats.get(worse.index), better.stated.spread.get(worse.index)
    if beats is not None and not 0 <= beats <= 1:
        return None
    if beats is not None and shift == 0:
        return beats
    if beats is not None and (turned := better.stated.turned) is not None:
        return (1 - turned) * _above(difference, shift) + turned * _above(-difference, shift)
    if better.stated.levels and worse.stated.levels:
        return _levels_above(better.stated.levels, worse.stated.levels, shift)
    if beats is not None:
        return shifted(beats, difference, shift, spread)
    std_a, std_b = better.score_std, worse.score_std
    if std_a is None or std_b is None:
        raise DataError(
            f"prompt {prompt_id} has scores with the standard deviations {std_a} and {std_b}, and the recipe needs "
            "both: choose a judge that states them, or turn preferences.soft_labels and preferences.min_probability off"
        )
    return soft_label(better.value, worse.value, std_a, std_b)


def shifted(beats: float, difference: float, shift: float, spread: float | None) -> float:
    """Returns the probability that a difference is above ``shift``, if it is above 0 with the probability ``beats``.

    ``Phi(z - shift / spread)`` with ``z = Phi^-1(beats)``, for a normal difference ``Phi((difference - shift) /
    spread)``. If the judge states no spread, it is the one that ``difference`` and ``beats`` imply, ``difference / z``;
    if they imply none, because the scores are equal or contradict the probability, it stays as it is.
    """
    if spread == 0 or beats in (0.0, 1.0):
        return _above(difference, shift)
    z = NormalDist().inv_cdf(beats)
    if spread is not None:
        return NormalDist().cdf(z - shift / spread)
    return NormalDist().cdf(z * (difference - shift) / difference) if z * difference > 0 else beats


def _levels_above(levels_a: Mapping[int, float], levels_b: Mapping[int, float], shift: float) -> float:
    pairs = [(a - b, p * q) for a, p in levels_a.items() for b, q in levels_b.items()]
    return math.fsum(share * _above(difference, shift) for difference, share in pairs) / math.fsum(
        share for _, share in pairs
    )


def _above(difference: float, shift: float) -> float:
    return 0.5 if difference == shift else float(difference > shift)


@dataclass(frozen=True)
class Comparison:
    """When a candidate beats another: above the margin, and if the recipe says so above a probability."""

    config: PreferencesConfig
    prompt_id: str

    def above_margin(self, better: Candidate, worse: Candidate) -> bool:
        """Says whether the difference in value is above the least one."""
        return better.value - worse.value > self.config.min_margin

    def clear(self, better: Candidate, worse: Candidate) -> bool:
        """Says whether the first is preferred to the second."""
        if not self.above_margin(better, worse):
            return False
        if not self.config.needs_uncertainty:
            return True
        found = probability(better, worse, self.prompt_id)
        return found is not None and found >= (self.config.min_probability or 0.5)
