"""How far those who label agree, with each other and with the judges, and how fast they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations, pairwise

from flows.analysis.label_queues import RoundQuestions
from pipeline.judges.support.human_labels import ANSWERED, DECIDED, Choice, Question, digest

LONGEST_PAUSE = 300.0
"""Seconds; who labels nothing for longer is taken to have paused."""


@dataclass(frozen=True)
class Agreement:
    """How far two of those who compared the same pairs agree.

    Attributes:
        one: a labeller.
        other: another labeller, or a judge.
        is_judge: whether the other is a judge.
        pairs: how many both have decided; a tie is a decision, a skip is none.
        share: of these, the part on which they say the same; None of none.
        kappa: Cohen's kappa, see :func:`cohens_kappa`.
    """

    one: str
    other: str
    is_judge: bool
    pairs: int
    share: float | None
    kappa: float | None


@dataclass(frozen=True)
class Labeller:
    """What one person has labelled of a round.

    Attributes:
        name: of the person.
        answered: questions with a choice.
        ties: how many of them are ties.
        skipped: how many of them were skipped.
        per_hour: see :func:`labels_per_hour`.
    """

    name: str
    answered: int
    ties: int
    skipped: int
    per_hour: float | None


def cohens_kappa(said: Sequence[tuple[str, str]]) -> float | None:
    """Returns the agreement of two raters beyond chance: ``(p - e) / (1 - e)``, after Cohen (1960).

    ``p`` is the share of pairs on which they agree, and ``e`` that share if each gave the same answers in a random
    order.

    Args:
        said: what each of the two says of each pair.

    Returns:
        1 for full agreement, 0 for chance; None of no pairs, and if both always say one and the same.
    """
    if not said:
        return None
    agreed = sum(one == other for one, other in said) / len(said)
    ones, others = Counter(one for one, _ in said), Counter(other for _, other in said)
    chance = sum(ones[answer] * others[answer] for answer in ones) / len(said) ** 2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def agreements(asked: RoundQuestions, choices: Sequence[Choice]) -> list[Agreement]:
    """Compares each labeller with each judge and with each other, on the questions that both have decided.

    Args:
        choices: the newest choice of each labeller to each question.
    """
    people: dict[str, dict[str, str]] = {}
    for choice in choices:
        if choice["question"] in asked.by_key and choice["choice"] in DECIDED:
            key = choice["question"]
            people.setdefault(choice["labeller"], {})[key] = _side(asked.by_key[key], choice["better"])
    judges = {name: _by_scores(asked, differences) for name, differences in asked.differences.items()}
    pairs = [(one, name, True, said) for one in people for name, said in judges.items()]
    pairs += [(one, other, False, people[other]) for one, other in combinations(people, 2)]
    return [_agreement(one, people[one], other, said, is_judge) for one, other, is_judge, said in pairs]


def labellers(asked: RoundQuestions, choices: Sequence[Choice]) -> list[Labeller]:
    """Sums up what each person has labelled of the round, by name.

    Args:
        choices: the newest choice of each labeller to each question.
    """
    answers: dict[str, list[Choice]] = {}
    for choice in choices:
        if choice["question"] in asked.by_key and choice["choice"] in ANSWERED:
            answers.setdefault(choice["labeller"], []).append(choice)
    return [
        Labeller(
            name,
            len(given),
            sum(choice["choice"] == "tie" for choice in given),
            sum(choice["choice"] == "skip" for choice in given),
            labels_per_hour(given),
        )
        for name, given in sorted(answers.items())
    ]


def labels_per_hour(choices: Sequence[Choice]) -> float | None:
    """Returns a labeller's pace, by the times between one choice and the next that are no pauses.

    What was made in another program and read from a file does not count.

    Returns:
        Labels an hour; None if no two choices follow each other within ``LONGEST_PAUSE``.
    """
    times = sorted(datetime.fromisoformat(choice["time"]) for choice in choices if "made_in" not in choice)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    working = [gap for gap in gaps if gap <= LONGEST_PAUSE]
    return 3600 * len(working) / sum(working) if sum(working) > 0 else None


def _by_scores(asked: RoundQuestions, differences: Mapping[str, float]) -> dict[str, str]:
    """Says which side a judge's scores choose."""
    said = {}
    for key, difference in differences.items():
        first, second = (digest(answer.text) for answer in asked.by_key[key].answers)
        said[key] = _side(asked.by_key[key], first if difference > 0 else second if difference < 0 else None)
    return said


def _side(question: Question, better: str | None) -> str:
    """Names the better text of a question by its digest.

    Which of two texts is the first one must not follow from what a judge says: one that always preferred the first
    would agree with nobody beyond chance. So it is the one whose digest is smaller, which is as good as drawn.
    """
    if better is None:
        return "tie"
    return "first" if better == min(digest(answer.text) for answer in question.answers) else "second"


def _agreement(one: str, said: Mapping[str, str], other: str, says: Mapping[str, str], is_judge: bool) -> Agreement:
    both = [(side, says[key]) for key, side in said.items() if key in says]
    share = sum(a == b for a, b in both) / len(both) if both else None
    return Agreement(one, other, is_judge, len(both), share, cohens_kappa(both))
