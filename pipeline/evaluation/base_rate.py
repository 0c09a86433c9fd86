"""The base rate: how many of the initial policy's answers score, and what to do if that leaves nothing to learn."""

from dataclasses import dataclass
from math import isfinite
from statistics import pstdev

from pipeline.evaluation.metrics import Scores

IF_NOTHING_SCORES = (
    "show an example of a good answer in the prompt, give credit for answers that are half right, or raise "
    "sampling.temperature"
)
"""What to do if there is nothing to prefer, as all answers fail."""
IF_ALL_SCORE = "the policy can do this already: give harder prompts, or a stricter judge"
IF_ALL_TIE = "let the judge see finer differences, or raise sampling.temperature"


@dataclass(frozen=True, kw_only=True)
class BaseRate:
    """What a judge made of the initial policy's held-out answers, of which each prompt has one.

    Attributes:
        judge: its name.
        scores: of the answers that have one.
        verdicts: whether 1 and 0 mean right and wrong to it; what lies between is half right.
    """

    judge: str
    scores: tuple[float, ...]
    verdicts: bool

    @classmethod
    def of(cls, scores: Scores, judge: str, *, verdicts: bool) -> "BaseRate":
        """Takes the answers that have a score.

        Args:
            verdicts: what the judge says of itself; a score outside of 0 to 1 contradicts it.
        """
        known = tuple(score for score in scores.values() if score is not None and isfinite(score))
        return cls(judge=judge, scores=known, verdicts=verdicts and all(0 <= score <= 1 for score in known))

    @property
    def sentence(self) -> str:
        """Says how many answers score, or how far the scores of a judge without verdicts are apart."""
        count = len(self.scores)
        if not self.verdicts:
            low, high, spread = min(self.scores), max(self.scores), pstdev(self.scores)
            return (
                f"base rate: {self.judge} gives {count} held-out answers from {low:.4g} to {high:.4g}, with a standard "
                f"deviation of {spread:.3g}"
            )
        above, right = sum(score > 0 for score in self.scores), sum(score == 1 for score in self.scores)
        return (
            f"base rate: of {count} held-out answers {above} ({above / count:.0%}) score above 0 by {self.judge}, "
            f"{right} ({right / count:.0%}) are right"
        )

    @property
    def alarm(self) -> str | None:
        """Says what to do if all answers score the same: a preference needs two that differ. None if they do not.

        That none of n answers scores is likely (5%) while the true rate is up to ``1 - 0.05 ** (1 / n)``.
        """
        if len(set(self.scores)) > 1:
            return None
        score, count = self.scores[0], len(self.scores)
        if self.verdicts and score == 0:
            most = 1 - 0.05 ** (1 / count)
            return (
                f"base rate 0: none of {count} held-out answers scores above 0 by {self.judge} (with 95% confidence "
                f"fewer than {100 * most:.2g}% would), so that prompts may give no preference: {IF_NOTHING_SCORES}"
            )
        if self.verdicts and score == 1:
            return f"base rate 1: all {count} held-out answers are right by {self.judge}: {IF_ALL_SCORE}"
        return f"base rate: {self.judge} gives all {count} held-out answers the same score, {score:.4g}: {IF_ALL_TIE}"


def first_preferences(preferring: int, prompts: int) -> str:
    """Says how many prompts of the first round give a preference, and what to do if none does."""
    said = f"{preferring} of {prompts} prompts give a preference ({preferring / prompts:.0%})"
    if preferring:
        return said
    return (
        f"{said}, so that there is nothing to learn from: if all answers fail, {IF_NOTHING_SCORES}; if all are right, "
        "give harder prompts"
    )
