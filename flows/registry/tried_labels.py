"""Preferences between answers that people tried: which there are of a run, and what they come to.

Such a choice is a label like any other, of the kind ``tried``. Its texts are those of no round, so it has them itself:
the prompt, and both answers with their checkpoints. No round trains on it: its question is none of a round's, even if
a round has the same prompt with the same two texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.judges.support.human_labels import DECIDED, Choice, digest

TRIED = "tried"
"""The kind of these choices."""


@dataclass(frozen=True)
class TriedPair:
    """A prompt with two answers, and what people said of them.

    Attributes:
        prompt: ``text`` or ``messages``, as it was given.
        answers: each with its run, round, policy, text, the prompt as read, and how it ended.
        choices: the newest of each labeller, the oldest first; better or tie.
    """

    prompt: Mapping[str, Any]
    prompt_id: str
    answers: Sequence[Mapping[str, Any]]
    choices: Sequence[Choice]

    @property
    def share(self) -> float:
        """Returns the share of people who prefer the first answer, ties half."""
        first = digest(self.answers[0]["text"])
        votes = [0.5 if said["choice"] == "tie" else float(said["better"] == first) for said in self.choices]
        return sum(votes) / len(votes)

    @property
    def ordered(self) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """Returns the better answer and the worse one, by the majority; None if people are divided."""
        first, second = self.answers
        return None if self.share == 0.5 else (first, second) if self.share > 0.5 else (second, first)


def tried_pairs(choices: Iterable[Choice], run: str) -> list[TriedPair]:
    """Returns the pairs that people tried on the page of a run and decided, the oldest first.

    Args:
        choices: the newest of each labeller to each question.
    """
    decided = [c for c in choices if c.get("kind") == TRIED and c["run"] == run and c["choice"] in DECIDED]
    by_question: dict[str, list[Choice]] = {}
    for choice in sorted(decided, key=lambda choice: choice["time"]):
        by_question.setdefault(choice["question"], []).append(choice)
    return [
        TriedPair(said[0]["prompt"], said[0]["prompt_id"], said[0]["answers"], said) for said in by_question.values()
    ]
