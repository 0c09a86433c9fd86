"""The files of two other labelling programs: what they say of pairs of texts, and our labels as they would write them.

Argilla writes the records of a dataset as a JSON list. Its template for preferences has the fields ``prompt``,
``response1`` and ``response2``, and the question ``preference``: a ranking of the two, or a label in older versions.
Label Studio's export (JSON, not JSON-MIN) is a list of tasks. Its template for preferences has the data ``prompt``,
``answer1`` and ``answer2``, and a result of the type ``pairwise``, which is left or right: a tie is a choice beside it.
"""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

from flows.analysis.labelling import LONGEST_NOTE
from pipeline.errors import DataError

_FIELDS = (("response1", "response2"), ("answer1", "answer2"), ("text1", "text2"))
"""What the two texts are called in the programs' templates, without what is no letter or digit."""
_USERS = UUID("6f0d6a3c-6c1e-5d3b-9d2f-52b1c9f2a1d7")
_ARGILLA, _LABEL_STUDIO = "argilla:", "label-studio:"
_TIE = "tie"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """What one person says of two texts.

    Attributes:
        labeller: the person's name.
        choice: better, tie or skip.
        better: the place of the better text, 0 or 1; None without one.
        tags: the reasons.
        note: what there is to say beside them.
        submitted: whether the file says that the person has finished this, rather than begun or discarded it.
    """

    labeller: str
    choice: str
    better: int | None = None
    tags: Sequence[str] = ()
    note: str = ""
    submitted: bool = True


@dataclass(frozen=True)
class Compared:
    """Two texts that people compare.

    Attributes:
        prompt: what they answer; empty if the file does not say.
        texts: as people are shown them, left and right.
        said: by whom what.
        key: of the question, if rondo has written the record.
        origin: the run and the round, for people.
    """

    prompt: str
    texts: tuple[str, str]
    said: Sequence[Said] = ()
    key: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


def to_argilla(compared: Compared) -> Record:
    """Makes a record, as Argilla reads it from a file; what was skipped is left out, as it has no value for it."""
    chosen = [said for said in compared.said if said.choice != "skip"]
    users = {said.labeller: _user_id(said.labeller) for said in chosen}

    def responses(values: Mapping[str, Any]) -> list[Record]:
        return [
            {"value": value, "user_id": users[name], "status": "submitted"} for name, value in values.items() if value
        ]

    answers = {
        "preference": responses(
            {said.labeller: _TIE if said.better is None else _RESPONSES[said.better] for said in chosen}
        ),
        "reasons": responses({said.labeller: list(said.tags) for said in chosen}),
        "note": responses({said.labeller: said.note for said in chosen}),
    }
    return {
        "id": compared.key,
        "fields": {"prompt": compared.prompt, **dict(zip(_RESPONSES, compared.texts, strict=True))},
        "metadata": {
            "question": compared.key, **compared.origin,
            "labellers": [f"{user} {name}" for name, user in users.items()],
        },
        "suggestions": {},
        "responses": {question: given for question, given in answers.items() if given},
        "vectors": {},
    }  # fmt: skip


def from_argilla(record: Record) -> Compared:
    """Reads a record of Argilla; a draft is no choice, and what is discarded is a skip, with a value or without.

    The file that Argilla's client writes says of no response which of these it is: there, one with a value is a choice.

    Raises:
        DataError: it is no record of a comparison, or a response has another form, or too long a note.
    """
    fields, responses = _mapping(record, "fields"), _mapping(record, "responses")
    names = _names(fields)
    metadata = record.get("metadata") or {}
    known = dict(entry.split(" ", 1) for entry in metadata.get("labellers") or ())
    reasons, notes = (
        {str(r.get("user_id")): r["value"] for r in responses.get(name) or ()} for name in ("reasons", "note")
    )
    said = []
    for response in responses.get("preference") or ():
        if response.get("status") == "draft":
            continue
        user = str(response.get("user_id"))
        name = known.get(user, f"{_ARGILLA}{user}")
        more = _reasons(reasons.get(user)), _note(notes.get(user))
        if response.get("status") == "discarded":
            said.append(Said(name, "skip", None, *more))
            continue
        if "status" not in response and response.get("value") is None:
            continue
        better = _ranked(response.get("value"), names)
        choice, submitted = "tie" if better is None else "better", response.get("status") == "submitted"
        said.append(Said(name, choice, better, *more, submitted=submitted))
    return Compared(fields.get("prompt", ""), _texts(fields, names), said, metadata.get("question"))


def to_label_studio(compared: Compared) -> Record:
    """Makes a task with annotations, as Label Studio imports it."""
    return {
        "data": {
            "prompt": compared.prompt, **dict(zip(_ANSWERS, compared.texts, strict=True)),
            "question": compared.key, **compared.origin,
        },
        "annotations": [
            {"result": list(_results(said)), "was_cancelled": said.choice == "skip", "ground_truth": False}
            for said in compared.said
        ],
    }  # fmt: skip


def from_label_studio(task: Record) -> Compared:
    """Reads a task of Label Studio; an annotation that chooses nothing is no choice, and a cancelled one is a skip.

    Raises:
        DataError: it is no task of a comparison, has the form of another export, or too long a note.
    """
    if "data" not in task:
        raise DataError("has no 'data', as in the export that Label Studio calls JSON-MIN: export it as JSON")
    data = _mapping(task, "data")
    names = _names(data)
    said = []
    for annotation in task.get("annotations") or ():
        results = annotation.get("result") or ()
        of = {result.get("from_name"): result.get("value") or {} for result in results}
        name = "".join(of.get("labeller", {}).get("text") or ()) or _completed_by(annotation.get("completed_by"))
        more = _reasons(of.get("reasons", {}).get("choices")), _note(of.get("note", {}).get("text"))
        if annotation.get("was_cancelled"):
            said.append(Said(name, "skip", None, *more))
            continue
        selected = [r["value"].get("selected") for r in results if r.get("type") == "pairwise"]
        ties = [choice for r in results if r.get("type") == "choices" for choice in r["value"].get("choices", ())]
        if selected and selected[0] in _SIDES:
            said.append(Said(name, "better", _SIDES.index(selected[0]), *more))
        elif any(choice.lower() == _TIE for choice in ties):
            said.append(Said(name, "tie", None, *more))
    return Compared(data.get("prompt", ""), _texts(data, names), said, data.get("question"))


_RESPONSES, _ANSWERS, _SIDES = _FIELDS[0], _FIELDS[1], ("left", "right")

WRITERS: Mapping[str, Callable[[Compared], Record]] = {"argilla": to_argilla, "label-studio": to_label_studio}
READERS: Mapping[str, Callable[[Record], Compared]] = {"argilla": from_argilla, "label-studio": from_label_studio}


def _mapping(record: Record, name: str) -> Record:
    found = record.get(name) or {}
    if not isinstance(found, Mapping):
        raise DataError(f"has '{name}', which is no object")
    return found


def _plain(name: object) -> str:
    """Leaves letters and digits: Argilla's versions call a field response1 and response-1, and its label Response 1."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _names(fields: Record) -> tuple[str, str]:
    """Returns what the two texts are called here."""
    plain = {_plain(name): name for name in fields}
    for one, other in _FIELDS:
        if one in plain and other in plain:
            return plain[one], plain[other]
    raise DataError(
        f"has the fields {', '.join(fields) or 'none'}: the two texts are response1 and response2, or answer1 and "
        "answer2"
    )


def _texts(fields: Record, names: tuple[str, str]) -> tuple[str, str]:
    return str(fields[names[0]]), str(fields[names[1]])


def _reasons(value: object) -> tuple[str, ...]:
    """Returns the reasons that are given: a list of texts, or a single one as text."""
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, list) or not all(isinstance(reason, str) for reason in found):
        raise DataError(f"has the reasons {reprlib.repr(value)}: they are a list of texts")
    return tuple(found)


def _note(value: object) -> str:
    """Returns the note that is given: a text, or its paragraphs."""
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
        raise DataError(f"has the note {reprlib.repr(value)}: it is a text")
    note = "\n".join(found).strip()
    if len(note) > LONGEST_NOTE:
        raise DataError(f"has a note of {len(note):,} characters: at most {LONGEST_NOTE:,} are kept")
    return note


def _ranked(value: object, names: tuple[str, str]) -> int | None:
    """Returns the place of the better text; None for a tie.

    Args:
        value: a label, the names from the best on, or these with ranks, of which equal ones are a tie.
    """
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        ranks = [entry.get("rank") for entry in value]
        if len(value) > 1 and ranks[0] == ranks[1]:
            return None
        value = [entry.get("value") for entry in sorted(value, key=lambda entry: entry.get("rank") or 0)]
    best = _plain(value[0] if isinstance(value, list) and value else value)
    places = [_plain(name) for name in names]
    if best == _TIE:
        return None
    if best not in places:
        given = reprlib.repr(value)
        raise DataError(f"has the preference {given}: it is {names[0]}, {names[1]}, tie, or a ranking of the two")
    return places.index(best)


def _user_id(name: str) -> str:
    """Returns a labeller's id in Argilla, which has ids in place of names: the one that it gave, or one made of it."""
    return name.removeprefix(_ARGILLA) if name.startswith(_ARGILLA) else str(uuid5(_USERS, name))


def _completed_by(user: object) -> str:
    """Names a user of Label Studio, who is a number, or an object with an address."""
    if isinstance(user, Mapping):
        return str(user.get("email") or f"{_LABEL_STUDIO}{user.get('id')}")
    return f"{_LABEL_STUDIO}{'somebody' if user is None else user}"


def _results(said: Said) -> Iterator[Record]:
    """Yields the results of an annotation; a result of a ``Pairwise`` tag names that tag twice."""
    if said.better is not None:
        yield _result("comparison", "comparison", "pairwise", {"selected": _SIDES[said.better]})
    if said.choice == "tie":
        yield _result(_TIE, "prompt", "choices", {"choices": [_TIE]})
    if said.tags:
        yield _result("reasons", "prompt", "choices", {"choices": list(said.tags)})
    if said.note:
        yield _result("note", "prompt", "textarea", {"text": [said.note]})
    yield _result("labeller", "prompt", "textarea", {"text": [said.labeller]})


def _result(name: str, of: str, kind: str, value: Record) -> Record:
    return {"from_name": name, "to_name": of, "type": kind, "value": value}
