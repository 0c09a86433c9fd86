"""Constraints on the form of an answer that a program can check, in the manner of IFEval (arXiv:2311.07911).

A prompt's reference answer states its constraints as JSON, ``{"about": ["rivers"], "constraints": {"max_words": 20}}``:
each kind at most once, with a number, a text, or ``true`` for a kind that has nothing to choose.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.data.words import in_one_form, sentences, words
from pipeline.errors import DataError

Value = int | str | bool
CHECKS_VERSION = 3
"""Counts changes of what the checks below accept."""
# On one line a mark, a blank, and something that is no further mark: "* * *" is a rule between paragraphs.
_BULLET = re.compile(r"^[^\S\n]*[-*•][^\S\n][^\n]*[^\s*•-]", re.MULTILINE)
_COMMAS = frozenset(",،、，")
_ELSEWHERE = 0.5
"""What a phrase is worth that stands in an answer, and not at the end where it should."""
_OF_WORDS = frozenset({"starts_with", "keyword", "without_word"})
"""Kinds whose value is compared word by word."""


@dataclass(frozen=True)
class Kind:
    """A kind of constraint.

    Attributes:
        asks: how a prompt asks for it, in two wordings; ``{value}`` stands for its value.
        nearness: says how near an answer that has a word, with ``\\n`` alone between lines, is to its value: 1 if it
            fulfils it, else from 0 to below 1.
        values: what a generated prompt may ask for.
        aspects: what of an answer it decides. Two kinds that share none can always be fulfilled together.
    """

    asks: tuple[str, str]
    nearness: Callable[[str, Any], float]
    values: Sequence[Value]
    aspects: frozenset[str]


class Instruction(NamedTuple):
    """What a reference answer states: the words of the topic, and the value of each kind of constraint."""

    about: tuple[str, ...]
    constraints: Mapping[str, Value]


def _at_most(count: int, most: int) -> float:
    return min(1.0, most / max(count, 1))


def _starts(answer: str, phrase: str) -> float:
    wanted = words(phrase)
    if words(answer)[: len(wanted)] == wanted:
        return 1.0
    return _ELSEWHERE * (_times(answer, phrase) > 0)


def _ends(answer: str, phrase: str) -> float:
    text, end = (" ".join(in_one_form(part).split()) for part in (answer, phrase))
    before = text.removesuffix(end)
    inside_a_word = before[-1:].isalnum() and end[0].isalnum()
    if text.endswith(end) and not inside_a_word:
        return 1.0
    return _ELSEWHERE * (end in text)


def _times(answer: str, phrase: str) -> int:
    """Counts how often the words of a phrase stand one after the other in an answer."""
    said, wanted = words(answer), words(phrase)
    return sum(said[first : first + len(wanted)] == wanted for first in range(len(said) - len(wanted) + 1))


def _bullets(answer: str, count: int) -> float:
    found = len(_BULLET.findall(answer))
    return min(found, count) / max(found, count)


def _quoted(answer: str, _value: bool) -> float:
    text = answer.strip()
    return ((text[0] == '"') + (text[-1] == '"' and len(text) > 1)) / 2


def _unchanged(answer: str, changed: str) -> float:
    """Gives the share of an answer's parts between blanks that are as they are after a change of case."""
    if answer == changed:
        return 1.0
    parts = answer.split()
    same = sum(part == after for part, after in zip(parts, changed.split(), strict=True))
    return same / len(parts)


KINDS: Mapping[str, Kind] = {
    "max_sentences": Kind(
        ("Use at most {value} sentences.", "Your answer must not have more than {value} sentences."),
        lambda answer, most: _at_most(sentences(answer), most), (2, 3), frozenset({"length"}),
    ),
    "max_words": Kind(
        ("Use at most {value} words.", "Your answer must not be longer than {value} words."),
        lambda answer, most: _at_most(len(words(answer)), most), (10, 15, 20, 25), frozenset({"length"}),
    ),
    "min_words": Kind(
        ("Use at least {value} words.", "Your answer must have {value} words or more."),
        lambda answer, least: min(1.0, len(words(answer)) / least), (15, 20, 25, 30), frozenset({"length"}),
    ),
    "bullets": Kind(
        (
            "Write exactly {value} bullet points, each on a line that begins with \"- \".",
            "Answer with a list of {value} points, and begin each line of it with \"- \".",
        ),
        _bullets, (2, 3, 4), frozenset({"length", "layout"}),
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
        lambda answer, _value: _unchanged(answer, answer.lower()), (True,), frozenset({"case"}),
    ),
    "upper_case": Kind(
        ("Use CAPITAL letters only.", "Your whole answer must be in upper case."),
        lambda answer, _value: _unchanged(answer, answer.upper()), (True,), frozenset({"case"}),
    ),
    "no_commas": Kind(
        ("Do not use any commas.", "There must be no comma in your answer."),
        lambda answer, _value: 1 / (1 + sum(answer.count(comma) for comma in _COMMAS)),
        (True,), frozenset({"punctuation"}),
    ),
    "keyword": Kind(
        ("Use the word \"{value}\".", "The word \"{value}\" must be in your answer."),
        lambda answer, phrase: float(_times(answer, phrase) > 0),
        ("morning", "stone", "friend", "silver", "window", "number", "summer", "story", "careful", "quickly",
         "wonderful", "history"),
        frozenset({"words"}),
    ),
    "without_word": Kind(
        ("Do not use the word \"{value}\".", "The word \"{value}\" must not be in your answer."),
        lambda answer, phrase: 1 / (1 + _times(answer, phrase)), ("and", "a", "of", "they", "can"),
        frozenset({"words"}),
    ),
}  # fmt: skip


def nearness(answer: str, constraints: Mapping[str, Value]) -> dict[str, float]:
    """Says for each constraint how near the answer is, from 0 to 1; 0 for an answer without a word."""
    empty, text = not words(answer), "\n".join(answer.splitlines())
    return {kind: 0.0 if empty else KINDS[kind].nearness(text, value) for kind, value in constraints.items()}


def held(answer: str, constraints: Mapping[str, Value]) -> dict[str, bool]:
    """Says for each constraint whether the answer fulfils it; an answer without a word fulfils none."""
    return {kind: near == 1 for kind, near in nearness(answer, constraints).items()}


def write_instruction(instruction: Instruction) -> str:
    """Writes the reference answer that ``read_instruction`` reads."""
    return json.dumps(
        {"about": list(instruction.about), "constraints": dict(instruction.constraints)}, separators=(",", ":")
    )


def read_instruction(reference: str) -> Instruction:
    """Reads a reference answer; ``about``, a text or a list of texts, may be absent.

    Raises:
        DataError: it does not state constraints in this form; says what is wrong.
    """
    try:
        stated = json.loads(reference, object_pairs_hook=_each_once)
    except DataError:
        raise
    except (ValueError, RecursionError):
        stated = None
    constraints = stated.get("constraints") if isinstance(stated, dict) else None
    if not isinstance(constraints, dict) or not constraints:
        raise DataError(
            f"the reference answer {reference!r:.80} states no constraints: give a JSON object such as "
            '{"constraints": {"max_words": 20}}'
        )
    for kind, value in constraints.items():
        _check(kind, value)
    about = stated.get("about", [])
    topics = [about] if isinstance(about, str) else about
    if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
        raise DataError(f"the reference answer's 'about' is {about!r:.40}: give it a text or a list of texts")
    return Instruction(tuple(topics), constraints)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its fields. Of a name that stands there twice the parser would keep the last one alone."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the reference answer states '{twice}' twice, and one would be lost: state it once")
    return fields


def _check(kind: str, value: object) -> None:
    if kind not in KINDS:
        raise DataError(f"there is no constraint '{kind}': choose among {', '.join(KINDS)}")
    if isinstance(value, str):
        empty = not (words(value) if kind in _OF_WORDS else value.strip())
    else:
        empty = not value or (isinstance(value, int) and value < 0)
    wanted = type(KINDS[kind].values[0])
    if type(value) is not wanted or empty:
        text = "a text with a word in it" if kind in _OF_WORDS else "a text that is not empty"
        names = {int: "a whole number from 1 up", str: text, bool: "true"}
        raise DataError(f"the constraint '{kind}' has the value {value!r:.40}: give it {names[wanted]}")
