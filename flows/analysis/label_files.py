"""Labels to and from the files of other programs."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.analysis.label_formats import READERS, WRITERS, Compared, Said
from flows.analysis.label_queues import RoundQuestions, read_questions
from flows.analysis.labelling import Labelling, newest_round, shown_order
from flows.registry.catalog import existing_store, parse_source
from pipeline.data.conversations import written_out
from pipeline.errors import ConfigError, DataError
from pipeline.judges.support.human_labels import ANSWERED, Choice, Question, digest
from storage.errors import InvalidEntryError
from storage.log.store import Store
from storage.tables.shared_values import Labels, check_labeller


@dataclass
class Imported:
    """What a file brought.

    Attributes:
        kept: labels that are new, or that change what the labeller said before.
        known: labels that were there already, also if the labeller has changed them since.
        others: records of pairs that are none of the round's.
        unsure: labels that may be drafts or discarded ones, as the file does not say which of them were submitted.
        people: who said something.
    """

    kept: int = 0
    known: int = 0
    others: int = 0
    unsure: int = 0
    people: set[str] = field(default_factory=set)


def export_labels(source: str, to: Path, format: str, root: str) -> tuple[int, int]:
    """Writes all pairs of RUN@ROUND with what people have said of them; in another program, the rest can be labelled.

    Which completion stands first is drawn, and the same for all.

    Args:
        to: a new file.
        format: argilla or label-studio.

    Returns:
        How many pairs, and how many labels, skips aside.

    Raises:
        ConfigError: there is no such format, the file exists, or it cannot be written; then it is not left in part.
        NotCommittedError: the round has nothing to label yet.
    """
    write = _of_format(WRITERS, format)
    store, asked = _asked(source, root)
    said: dict[str, list[Choice]] = {}
    for choice in Labels(store).newest():
        if choice["choice"] in ANSWERED:
            said.setdefault(choice["question"], []).append(choice)
    compared = [_compared(asked, question, said.get(question.key, ())) for question in asked.questions]
    _write_new(to, json.dumps([write(pair) for pair in compared], indent=1))
    return len(compared), sum(said.choice != "skip" for pair in compared for said in pair.said)


def import_labels(source: str, path: Path, format: str, root: str, labeller: str | None = None) -> Imported:
    """Keeps the labels of a file as choices of RUN@ROUND; what is new in the file counts as said last.

    What a labeller has ever said of a pair is not new: an export does not take back what was said after it. If a
    labeller has several choices of a pair, the last in the file counts. A record belongs to the pair that has its two
    texts. Nothing is kept of a file with a record that cannot be read.

    Args:
        format: argilla or label-studio.
        labeller: who has labelled all of it; by default whom the file names.

    Raises:
        ConfigError: there is no such format, the file cannot be read, or no record is of a pair of the round.
        DataError: a record has not the format's form, or names a labeller who cannot be.
        InvalidEntryError: ``labeller`` is no name of one.
        NotCommittedError: the round has nothing to label yet.
    """
    read = _of_format(READERS, format)
    if labeller:
        check_labeller(labeller)
    store, asked = _asked(source, root)
    found = [
        _read(read, record, f"record {number} of '{path}'", format, labeller)
        for number, record in enumerate(_records(path), 1)
    ]
    by_texts: dict[frozenset[str], list[Question]] = {}
    for question in asked.questions:
        by_texts.setdefault(frozenset(digest(answer.text) for answer in question.answers), []).append(question)
    pairs = [(pair, _question(by_texts.get(frozenset(map(digest, pair.texts)), []), pair)) for pair in found]
    if not any(question for _, question in pairs):
        raise ConfigError(f"none of the {len(found)} records of '{path}' is of a pair of {asked.run}@{asked.round}")
    imported, last = Imported(), dict[tuple[str, str], tuple[Question, Compared, Said]]()
    for pair, asked_of in pairs:
        if asked_of is None:
            imported.others += 1
            continue
        for said in pair.said:
            last[asked_of.key, said.labeller] = asked_of, pair, said
    labels, desks = Labels(store), dict[str, Labelling]()
    for (_, name), (asked_of, pair, said) in last.items():
        if name not in desks:
            desks[name] = Labelling(asked, labels, name)
        kept = _keep(desks[name], asked_of, pair, said, format)
        imported.kept, imported.known = imported.kept + kept, imported.known + (not kept)
        imported.unsure += not said.submitted
        imported.people.add(name)
    return imported


def _of_format(known: Mapping[str, Any], format: str) -> Any:
    if format not in known:
        raise ConfigError(f"there is no format '{format}': give one of {', '.join(known)}")
    return known[format]


def _asked(source: str, root: str) -> tuple[Store, RoundQuestions]:
    name, number = parse_source(source)
    store = existing_store(root)
    run = store.run(name)
    return store, read_questions(store, run, newest_round(run) if number is None else number)


def _records(path: Path) -> list[Mapping[str, Any]]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"'{path}' is no JSON: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' has lists in lists too deep to be read: export the records anew") from error
    if not isinstance(read, list):
        raise ConfigError(f"'{path}' is no JSON list of records: export the records, or the tasks, as JSON")
    return read


def _read(
    read: Callable[[Mapping[str, Any]], Compared],
    record: Mapping[str, Any],
    where: str,
    format: str,
    labeller: str | None,
) -> Compared:
    """Reads a record; whoever is named in it, the labeller has said all of it if there is one."""
    try:
        pair = read(record)
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where} has not the form of {format} ({error!r})") from error
    if labeller:
        return replace(pair, said=[replace(said, labeller=labeller) for said in pair.said])
    for said in pair.said:
        try:
            check_labeller(said.labeller)
        except InvalidEntryError as error:
            raise DataError(f"{where}: {error}") from error
    return pair


def _write_new(path: Path, text: str) -> None:
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"'{path}' exists: give a new file") from None
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror}") from error
    try:
        with file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise ConfigError(f"'{path}' cannot be written: {error.strerror}") from error


def _compared(asked: RoundQuestions, question: Question, choices: Sequence[Choice]) -> Compared:
    shown = [answer.text for answer in shown_order(question, "", 0)]
    digests = [digest(text) for text in shown]
    said = [
        Said(
            choice["labeller"], choice["choice"], digests.index(choice["better"]) if choice["better"] else None,
            choice.get("tags", ()), choice.get("note", ""),
        )
        for choice in choices
    ]  # fmt: skip
    return Compared(
        _prompt(question), (shown[0], shown[1]), said, question.key, {"run": asked.run, "round": asked.round}
    )


def _prompt(question: Question) -> str:
    return written_out(question.prompt.messages) if question.prompt.messages else question.prompt.prompt_text


def _question(same: Sequence[Question], pair: Compared) -> Question | None:
    """Finds the question among those with these two texts; if several prompts have them, by key or prompt."""
    if len(same) > 1:
        same = [q for q in same if q.key == pair.key] or [q for q in same if _prompt(q) == pair.prompt]
    return same[0] if len(same) == 1 else None


def _keep(desk: Labelling, question: Question, pair: Compared, said: Said, format: str) -> bool:
    first, second = question.answers
    shown = (first, second) if digest(first.text) == digest(pair.texts[0]) else (second, first)
    better = None if said.better is None else shown[said.better]
    more = {"tags": list(said.tags), "note": said.note}
    more = {name: value for name, value in more.items() if value} | {"made_in": format}
    return desk.keep(question, said.choice, better, more, shown, unless_known=True)
