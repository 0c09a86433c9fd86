"""People as judges."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Config
from pipeline.config.judges.base import JudgeConfig


class PeopleJudge(JudgeConfig):
    """People who choose between two answers: ``rondo label RUN@ROUND``. The run stops until all have been asked.

    An answer's score is the share of its comparisons that it won, a tie counting one half.
    """

    kind: Literal["people"]
    pairs: int = Field(1, ge=1, le=1000, description="pairs of a prompt's answers that people are shown")

    @property
    def states_uncertainty(self) -> bool:
        """Of the pairs that people were shown; of several, a rule may choose two answers that they were not."""
        return self.pairs == 1

    @property
    def compares(self) -> bool:
        return True


class PeopleConfig(Config):
    """What people have to say beside another judge.

    They are shown pairs that this judge's scores have made. Where there is a choice it decides: the order of the pair
    is that of the people, and what they hold equal is dropped as a tie. The other pairs stay as they were.
    """

    override: Literal[True] = Field(True, description="where there is a choice for a pair, it decides")
    wait_for: int = Field(
        20, ge=1, le=1_000_000, description="pairs of a round that are to be labelled; all where it has fewer"
    )
