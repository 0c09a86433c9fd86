"""The object of a verdict in what a language model writes: after a reasoning, amid prose, in a fence, or by itself.

An object counts only if it is surely the verdict. So these do not: one in a reasoning that does not end, one that is
part of another or of a list, one after which another begins, and one that names a field twice.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

_MOST_BEGINNINGS = 1000
"""Beginnings of objects and lists in a reply; no verdict stands among so many, and each is a try."""
_NAMES = r"think|thinking|thought|thoughts|reasoning|reason|analysis|reflection|scratchpad|seed:think"
# <think>, [THINK], <|START_THINKING|>, <|begin_of_thought|>, and marks of single models.
_OPENS = re.compile(
    rf"<(?:{_NAMES})>|\[(?:{_NAMES})\]|<\|start_thinking\|>|<\|begin_of_thought\|>|\u25c1think\u25b7|<unused94>"
    r"|<\|channel\|>analysis",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    rf"</(?:{_NAMES})>|\[/(?:{_NAMES})\]|<\|end_thinking\|>|<\|end_of_thought\|>|\u25c1/think\u25b7|<unused95>"
    r"|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"\+?([0-9]{1,9})(\.0*)?")


@dataclass(frozen=True)
class FoundObject:
    """An object, and the text that it was read from: its own, and what follows it."""

    value: dict[str, Any]
    text: str
    following: str

    def after(self, key: str) -> str:
        """Returns the text from the value of one of its fields on."""
        values = list(re.finditer(rf'"{re.escape(key)}"\s*:\s*', self.text))
        return self.text[values[-1].end() :] + self.following if values else ""


def last_object(reply: str) -> FoundObject | None:
    """Finds the last JSON object after the reasoning; None if there is none that is surely whole and by itself."""
    try:
        return _last_object(reply.strip())
    except RecursionError:
        return None


def whole_number(value: Any) -> int | None:
    """Reads a whole number in any form: 4, 4.0, "4" or "4.0"; None for everything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    found = _WHOLE.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(found[1]) if found else None


def _last_object(text: str) -> FoundObject | None:
    if (whole := _decode(text, 0)) is not None and whole[1] == len(text):
        return FoundObject(whole[0], text, "") if isinstance(whole[0], dict) else None
    ends = [match.end() for match in _CLOSES.finditer(text)]
    text = text[ends[-1] :] if ends else text
    if _OPENS.search(text):  # a reasoning that was cut off, whose drafts are no verdicts
        return None
    return _last_alone(text)


def _last_alone(text: str) -> FoundObject | None:
    """Finds the last object of a text, if the braces around it that are no objects are balanced without it."""
    if text.count("{") + text.count("[") > _MOST_BEGINNINGS:
        return None
    last: FoundObject | None = None
    depth = place = 0
    while place < len(text):
        decoded = _decode(text, place) if text[place] in "{[" else None
        if decoded is not None:
            value, end = decoded
            if isinstance(value, dict):
                last = FoundObject(value, text[place:end], text[end:]) if depth == 0 else None
            place = end
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        place += 1
    return last if depth == 0 else None


def _decode(text: str, place: int) -> tuple[Any, int] | None:
    """Reads the JSON value that begins here, and says where it ends; None if there is none."""
    try:
        return _DECODER.raw_decode(text, place)
    except ValueError:
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field is named twice")
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
