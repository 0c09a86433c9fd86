"""How a judge states how sure it is, beyond a standard deviation for each score: components of a judgment by name."""

from collections.abc import Mapping
from statistics import NormalDist

BEATS, SPREAD, LEVEL, TURNED = "beats.", "spread.", "level.", "error_rate"
"""Components by which a judge states more than a standard deviation for each score by itself.

- ``beats.B``: the probability that the candidate beats candidate B of its prompt.
- ``spread.B``: the standard deviation of the difference of their two scores.
- ``level.N``: the probability of the whole score N, if the scores have a distribution that is known.
- ``error_rate``: the probability that all scores of the prompt are mirrored, so that every order is turned round.
"""


def pair_components(
    candidate: int, beats: Mapping[tuple[int, int], float], spread: Mapping[tuple[int, int], float] | None = None
) -> dict[str, float]:
    """Returns a candidate's components that say with what probability it beats each other one of its prompt.

    Args:
        beats: ``beats[a, b]`` is the probability that candidate a is better than candidate b, by their indices.
        spread: ``spread[a, b]`` is the standard deviation of the difference of their scores, if the judge states it.
    """
    stated = ((BEATS, beats), (SPREAD, spread or {}))
    return {f"{name}{b}": value for name, pairs in stated for (a, b), value in pairs.items() if a == candidate}


def order_probability(difference: float, spread: float) -> float:
    """Returns the probability that a normal difference of this mean and deviation is above 0; certain without one."""
    if spread == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return NormalDist().cdf(difference / spread)


def without_stated(components: Mapping[str, float]) -> dict[str, float]:
    """Leaves out the components that say how sure a judge is, for a judge that says so in its own way."""
    return {name: value for name, value in components.items() if not name.startswith((BEATS, SPREAD, LEVEL, TURNED))}
