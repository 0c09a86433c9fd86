"""How damage is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """Something in the store that is not as it was written.

    Attributes:
        path: the object, or the run where it is none in particular.
        round: the round that it belongs to; None where it belongs to none that is finished.
        problem: what is wrong.
        meaning: what that means for the run.
        spoils: whether the round is not good any more; it is where all that was damaged is told elsewhere as well.
    """

    path: str
    round: int | None
    problem: str
    meaning: str
    spoils: bool = True
