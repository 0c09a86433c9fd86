"""People as a judge, and what they say beside another one."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, SerializationInfo, field_serializer, model_validator

from pipeline.config.base import Config, for_a_hash
from pipeline.judges.base import (
    ON_CPU,
    JudgeConfig,
    JudgeItem,
    Judgment,
    Resources,
    Verdict,
    judge_version,
    judgment_of,
)
from pipeline.judges.registry import judge
from pipeline.judges.support.stated import pair_components

if TYPE_CHECKING:
    from pipeline.judges.support.human_labels import Choice

_WAIT = Field(
    0.0,
    ge=0,
    le=60 * 24 * 365,
    description="how long a round waits for labels if a Prefect server runs, in minutes; if 0, or without a "
    "server, the run stops, and goes on when it is resumed",
)


class HumanConfig(JudgeConfig):
    """People who choose between two completions: ``rondo label RUN@ROUND``. The run stops until all have been asked.

    A completion's score is the share of its comparisons that it won, a tie counting one half.
    """

    MEMBER = False

    kind: Literal["human", "people"]
    pairs: int = Field(1, ge=1, le=1000, description="pairs of a prompt's completions that people are shown")
    wait_minutes: float = _WAIT

    @field_serializer("kind")
    def _hashes_old_kind(self, kind: str, info: SerializationInfo) -> str:
        """Writes ``people`` for a hash: that is what ``human`` was called in version 0.1.0."""
        return "people" if for_a_hash(info) else kind

    @property
    def states_uncertainty(self) -> bool:
        """Says whether people see one pair a prompt; of several, a rule may choose two answers that were no pair."""
        return self.pairs == 1

    @property
    def compares(self) -> bool:
        return True

    @property
    def comes_early(self) -> bool:
        """Says no: people are asked when the round has begun."""
        return False


class HumanFeedbackConfig(Config):
    """What people have to say beside another judge.

    They are shown pairs that this judge's scores have made. If there is a choice it decides: the order of the pair
    is that of the people, and what they hold equal is dropped as a tie. The other pairs stay as they were.
    """

    override: Literal[True] = Field(True, description="if there is a choice for a pair, it decides")
    wait_for: int = Field(
        20, ge=1, le=1_000_000, description="pairs of a round that are to be labelled; all if it has fewer"
    )
    wait_minutes: float = _WAIT
    on_timeout: Literal["stop", "judge"] = Field(
        "stop",
        description="when wait_minutes are over since people were first asked: stop until the run is resumed, or go on "
        "with what the judge said where labels are missing, with an alarm",
    )

    @model_validator(mode="after")
    def _the_judge_decides_after_a_wait(self) -> "HumanFeedbackConfig":
        if self.on_timeout == "judge" and not self.wait_minutes:
            raise ValueError("people.on_timeout 'judge' needs people.wait_minutes, after which the judge decides")
        return self


@judge(HumanConfig)
class HumanJudge:
    """The share of its comparisons that an answer won, a tie counting one half, over all who chose.

    Answers that nobody was shown, or decided on, have no score: their status is ``unlabelled``.
    """

    def __init__(self, config: HumanConfig, _resources: Resources = ON_CPU) -> None:
        self._config = config
        self.name = config.kind
        self._seed = 0
        self._choices: Sequence[Choice] = ()
        self.version = judge_version(config)

    def use(self, choices: "Sequence[Choice]", seed: int) -> None:
        """Takes the choices that the judgments to come are made of, and the seed that the pairs were drawn by."""
        self._choices, self._seed = choices, seed

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Scores each answer by the choices.

        Components: of each pair who beats whom, as a share of the labellers; the raw verdict names these.
        """
        return [judgment for item in items for judgment in self._judge(item)]

    def _judge(self, item: JudgeItem) -> list[Judgment]:
        from pipeline.judges.support.human_labels import questions_of_candidates, share_for_first

        beats: dict[tuple[int, int], float] = {}
        said: dict[int, list[dict[str, object]]] = {}
        for question in questions_of_candidates([item], self._config.pairs, self._seed):
            share = share_for_first(question, self._choices)
            if share is None:
                continue
            first, second = (answer.index for answer in question.answers)
            beats |= {(first, second): share, (second, first): 1 - share}
            for index in (first, second):
                said.setdefault(index, []).extend(
                    {"labeller": choice["labeller"], "choice": choice["choice"], "better": choice["better"]}
                    for choice in self._choices
                    if choice["question"] == question.key
                )
        judgments = []
        for candidate in item.candidates:
            won = [share for (winner, _), share in beats.items() if winner == candidate.index]
            verdict = (
                Verdict(
                    score=sum(won) / len(won),
                    components=pair_components(candidate.index, beats),
                    raw=json.dumps(said[candidate.index], ensure_ascii=False),
                )
                if won
                else Verdict(score=None, status="unlabelled")
            )
            judgments.append(judgment_of(self, item, candidate, verdict, 0.0))
        return judgments
