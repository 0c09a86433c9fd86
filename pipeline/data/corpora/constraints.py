"""Constraints on the form of an answer that a program can check, in the manner of IFEval (arXiv:2311.07911).

A prompt's reference answer states its constraints as JSON, ``{"about": ["rivers"], "constraints": {"max_words": 20}}``:
each kind at most once, with a number, a text, or ``true`` for a kind that has nothing to choose.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.data.words import sentences, words
from pipeline.errors import DataError

Value = int | str | bool
CHECKS_VERSION = 1
"""Counts changes of what the checks below accept."""
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)


@dataclass(frozen=True)
class Kind:
    """A kind of constraint.

    Attributes:
        asks: how a prompt asks for it, in two wordings; ``{value}`` stands for its value.
        holds: says whether an answer that has a word fulfils it, given its value.
        values: what a generated prompt may ask for.
        aspects: what of an answer it decides. Two kinds that share none can always be fulfilled together.
    """

    asks: tuple[str, str]
    holds: Callable[[str, Any], bool]
    values: Sequence[Value]
    aspects: frozenset[str]


class Instruction(NamedTuple):
    """What a reference answer states: the words of the topic, and the value of each kind of constraint."""

    about: tuple[str, ...]
    constraints: Mapping[str, Value]


def _starts(answer: str, word: str) -> bool:
    return words(answer)[0] == word.casefold()


def _ends(answer: str, phrase: str) -> bool:
    return answer.rstrip().casefold().endswith(phrase.casefold())


def _quoted(answer: str, _value: bool) -> bool:
    text = answer.strip()
    return text[0] == text[-1] == '"'


KINDS: Mapping[str, Kind] = {
    "max_sentences": Kind(
        ("Use at most {value} sentences.", "Your answer must not have more than {value} sentences."),
        lambda answer, most: sentences(answer) <= most, (2, 3), frozenset({"length"}),
    ),
    "max_words": Kind(
        ("Use at most {value} words.", "Your answer must not be longer than {value} words."),
        lambda answer, most: len(words(answer)) <= most, (10, 15, 20, 25), frozenset({"length"}),
    ),
    "min_words": Kind(
        ("Use at least {value} words.", "Your answer must have {value} words or more."),
        lambda answer, least: len(words(answer)) >= least, (15, 20, 25, 30), frozenset({"length"}),
    ),
    "bullets": Kind(
        (
            "Write exactly {value} bullet points, each on a line that begins with \"- \".",
            "Answer with a list of {value} points, and begin each line of it with \"- \".",
        ),
        lambda answer, count: len(_BULLET.findall(answer)) == count, (2, 3, 4), frozenset({"length", "layout"}),
    ),
    "starts_with": Kind(
        ("Begin your answer with the word \"{value}\".", "The first word of your answer must be \"{value}\"."),
        _starts, ("Today", "Imagine", "Perhaps", "Everybody", "Surprisingly", "Listen"), frozenset({"layout"}),
    ),
    "ends_with": Kind(
        ("End your answer with \"{value}\"", "The last words of your answer must be exactly: \"{value}\""),
        _ends,
        ("That is all.", "See you soon!", "Try it yourself.", "What do you think?", "The end.", "I hope this helps."),
        frozenset({"layout"}),
    ),
    "quoted": Kind(
        ("Put your whole answer in double quotes.", "Your answer must begin and end with a double quote (\")."),
        _quoted, (True,), frozenset({"layout"}),
    ),
    "lower_case": Kind(
        ("Use small letters only, and no capitals.", "Your whole answer must be in lower case."),
        lambda answer, _value: answer == answer.lower(), (True,), frozenset({"case"}),
    ),
    "upper_case": Kind(
        ("Use CAPITAL letters only.", "Your whole answer must be in upper case."),
        lambda answer, _value: answer == answer.upper(), (True,), frozenset({"case"}),
    ),
    "no_commas": Kind(
        ("Do not use any commas.", "There must be no comma in your answer."),
        lambda answer, _value: "," not in answer, (True,), frozenset({"punctuation"}),
    ),
    "keyword": Kind(
        ("Use the word \"{value}\".", "The word \"{value}\" must be in your answer."),
        lambda answer, word: word.casefold() in words(answer),
        ("morning", "stone", "friend", "silver", "window", "number", "summer", "story", "careful", "quickly",
         "wonderful", "history"),
        frozenset({"words"}),
    ),
    "without_word": Kind(
        ("Do not use the word \"{value}\".", "The word \"{value}\" must not be in your answer."),
        lambda answer, word: word.casefold() not in words(answer), ("and", "a", "of", "they", "can"),
        frozenset({"words"}),
    ),
}  # fmt: skip


def held(answer: str, constraints: Mapping[str, Value]) -> dict[str, bool]:
    """Says for each constraint whether the answer fulfils it; an answer without a word fulfils none."""
    empty = not words(answer)
    return {kind: not empty and KINDS[kind].holds(answer, value) for kind, value in constraints.items()}


def write_instruction(instruction: Instruction) -> str:
    """Writes the reference answer that ``read_instruction`` reads."""
    return json.dumps(
        {"about": list(instruction.about), "constraints": dict(instruction.constraints)}, separators=(",", ":")
    )


def read_instruction(reference: str) -> Instruction:
    """Reads a reference answer; ``about`` may be absent.

    Raises:
        DataError: it does not state constraints in this form; says what is wrong.
    """
    try:
        stated = json.loads(reference)
    except (ValueError, RecursionError):
        stated = None
    constraints = stated.get("constraints") if isinstance(stated, dict) else None
    if not isinstance(constraints, dict) or not constraints:
        raise DataError(
            f"the reference answer {reference!r:.80} states no constraints: give a JSON object such as "
            '{"constraints": {"max_words": 20}}'
        )
    for kind, value in constraints.items():
        if kind not in KINDS:
            raise DataError(f"there is no constraint '{kind}': choose among {', '.join(KINDS)}")
        wanted = type(KINDS[kind].values[0])
        negative = isinstance(value, int) and value < 0
        if type(value) is not wanted or not value or negative:
            names = {int: "a whole number from 1 up", str: "a text that is not empty", bool: "true"}
            raise DataError(f"the constraint '{kind}' has the value {value!r:.40}: give it {names[wanted]}")
    return Instruction(tuple(stated.get("about", ())), constraints)
