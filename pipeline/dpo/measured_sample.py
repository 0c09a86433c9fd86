"""How many preferences are measured beside the steps of an update, so that this takes little beside them."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

COST = 0.03
"""Of the steps' time, at most, unless the least number of preferences takes more."""
PASSES_OF_A_STEP = 3
"""A step computes forward once, and backward, which is twice as much."""
LEAST_SAMPLE = 8
DISPLACEMENT_SAMPLE = 128
"""Preferences that are measured again after the last step: at least and at most, and in between as many as are
affordable. For all it would be a third of an epoch's time. A share of 128 has a standard error of at most 4.4 points,
one of 8 of at most 18: who judges by it must regard that.
"""


def affordable(preferences: int, epochs: int, *, least: int, most: int) -> int:
    """Counts the preferences that may be measured once, of an update on so many, between ``least`` and ``most``."""
    return min(most, max(least, int(COST * PASSES_OF_A_STEP * preferences * epochs)))


def displacement_sample(preferences: int, epochs: int) -> int:
    """Counts the preferences that are measured again after the last step of an update on so many."""
    return affordable(preferences, epochs, least=LEAST_SAMPLE, most=DISPLACEMENT_SAMPLE)


def spread(groups: Sequence[Item], most: int) -> list[Item]:
    """Chooses at most so many, evenly spread over all."""
    kept = min(most, len(groups))
    return [groups[index * len(groups) // kept] for index in range(kept)]
