"""People as judges."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config
from pipeline.config.judges.base import JudgeConfig

_WAIT = Field(
    0.0,
    ge=0,
    le=60 * 24 * 365,
    description="how long a round waits for labels where a Prefect server runs, in minutes; where 0, or without a "
    "server, the run stops, and goes on when it is resumed",
)


class PeopleJudge(JudgeConfig):
    """People who choose between two answers: ``rondo label RUN@ROUND``. The run stops until all have been asked.

    An answer's score is the share of its comparisons that it won, a tie counting one half.
    """

    kind: Literal["people"]
    pairs: int = Field(1, ge=1, le=1000, description="pairs of a prompt's answers that people are shown")
    wait_minutes: float = _WAIT

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
    wait_minutes: float = _WAIT
    on_timeout: Literal["stop", "judge"] = Field(
        "stop",
        description="when wait_minutes are over since people were first asked: stop until the run is resumed, or go on "
        "with what the judge said where labels are missing, with an alarm",
    )

    @model_validator(mode="after")
    def _the_judge_decides_after_a_wait(self) -> "PeopleConfig":
        if self.on_timeout == "judge" and not self.wait_minutes:
            raise ValueError("people.on_timeout 'judge' needs people.wait_minutes, after which the judge decides")
        return self
