"""Which of two candidates is better, by how much, and how surely."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from pipeline.config import PreferencesConfig
from pipeline.errors import DataError
from pipeline.preferences.candidates import Candidate


def soft_label(score_a: float, score_b: float, std_a: float, std_b: float) -> float:
    """Probability that a beats b: 1 or 0 if both are certain, 1/2 where they are also equal."""
    spread = math.hypot(std_a, std_b)
    difference = score_a - score_b
    if spread == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return NormalDist().cdf(difference / spread)


def probability(better: Candidate, worse: Candidate, prompt_id: str) -> float | None:
    """Probability that the order of two candidates is right; None if the judge's number for it is none.

    The judge's own, where it states one for the two. Else, for scores that are independent and normal,
    ``Phi((value_a - value_b) / sqrt(std_a**2 + std_b**2))`` (Thurstone 1927, case III; HPSv3, arXiv:2508.03789); a
    penalty of length is no part of what is uncertain.

    Raises:
        DataError: the judge states neither.
    """
    stated = better.beats.get(worse.index)
    if stated is not None:
        return stated if 0 <= stated <= 1 else None
    std_a, std_b = better.score_std, worse.score_std
    if std_a is None or std_b is None:
        raise DataError(
            f"prompt {prompt_id} has scores with the standard deviations {std_a} and {std_b}, and the recipe needs "
            "both: choose a judge that states them, or turn preferences.soft_labels and preferences.min_probability off"
        )
    return soft_label(better.value, worse.value, std_a, std_b)


@dataclass(frozen=True)
class Comparison:
    """When a candidate beats another: above the margin, and where the recipe says so above a probability."""

    config: PreferencesConfig
    prompt_id: str

    def above_margin(self, better: Candidate, worse: Candidate) -> bool:
        """Whether the difference in value is above the least one."""
        return better.value - worse.value > self.config.min_margin

    def clear(self, better: Candidate, worse: Candidate) -> bool:
        """Whether the first is preferred to the second."""
        if not self.above_margin(better, worse):
            return False
        if not self.config.needs_uncertainty:
            return True
        found = probability(better, worse, self.prompt_id)
        return found is not None and found >= (self.config.min_probability or 0.5)
