"""Two completions side by side, blind: what a labeller is asked next, and how far all of them are."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from flows.analysis.agreement import agreements, labellers
from flows.analysis.label_queues import QUEUES, RoundQuestions, read_questions
from flows.analysis.labelling import LONGEST_NOTE, TAGS, Labelling, newest_round
from flows.host.text import counted
from flows.registry.catalog import waits_for_people
from flows.registry.label_questions import missing_labels
from flows.registry.tried_labels import TriedPair, tried_pairs
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.terminal import root_option
from pipeline.data.conversations import written_out
from pipeline.judges.support.human_labels import Choice
from storage.errors import NotCommittedError
from storage.log.store import Store
from storage.tables.shared_values import Labels

_MOST_ROUNDS = 4
"""Rounds whose questions stay in memory."""
_LONGEST = 100_000
"""Characters of a text that are shown."""
_MOST_TRIED, _LONGEST_TRIED = 50, 1000
"""Tried pairs that are shown, and characters of their texts."""
_STAGES = ("candidates", "judgments", "preferences")
_TITLES = {
    "asked": "asked for", "random": "random", "margin": "smallest margin", "judges": "judges disagree",
    "people": "people disagree",
}  # fmt: skip
_NONE_IN = {
    "asked": "The round has no two completions to compare.",
    "random": "The round has no two completions to compare.",
    "margin": "No judge has scored both completions of a pair.",
    "judges": "No two judges order a pair of this round differently, or only one has judged it.",
    "people": "No pair of this round has been labelled differently by two people.",
}


class Desk:
    """Where people label: the questions of the rounds that were asked about last, and all labels; threads may share it.

    Args:
        store: of the runs.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._labels = store, Labels(store)
        self._read: OrderedDict[tuple[object, ...], RoundQuestions] = OrderedDict()
        self._lock = threading.Lock()

    def labelling(self, opened: OpenRun, number: int, labeller: str, queue: str) -> Labelling:
        """Begins or goes on with a person's labels of a round.

        Raises:
            ConfigError: there is no such queue.
            NotCommittedError: the round has nothing to label yet.
        """
        return Labelling(self._asked(opened, number), self._labels, labeller, queue=queue)

    def tried(self, run: str) -> list[TriedPair]:
        """Returns what people said of answers that they tried on the page of a run, the oldest first."""
        return tried_pairs(self._labels.newest(), run)

    def _asked(self, opened: OpenRun, number: int) -> RoundQuestions:
        """Reads a round's questions, anew when it has committed more."""
        files = (file.path for stage in _STAGES for file in opened.run.files(number, stage))
        key = (opened.run.identity, number, *files)
        with self._lock:
            if key not in self._read:
                self._read[key] = read_questions(self._store, opened.run, number)
            self._read.move_to_end(key)
            while len(self._read) > _MOST_ROUNDS:
                self._read.popitem(last=False)
            return self._read[key]


def page(desk: Desk, opened: OpenRun, number: int | None, queue: str, labeller: str, key: str | None) -> Page:
    """Shows a labeller the next question, without anything that a judge or another person has said of it.

    Args:
        number: the round; the one at work, or else the newest, if None.
        queue: which questions come, and in which order.
        labeller: the person's name; nothing is asked if it is empty.
        key: of a question to show in place of the next.

    Raises:
        ConfigError: there is no such queue, or the round has no such question.
    """
    shown = opened.state
    values: dict[str, Any] = {
        "queue": queue,
        "labeller": labeller,
        "rounds": [number for number in opened.begun if number],
        "tags": TAGS,
        "nothing": None,
    }
    try:
        number = newest_round(opened.run) if number is None else number
        labelling = desk.labelling(opened, number, labeller, queue)
    except NotCommittedError as error:
        values |= {"round": number, "nothing": str(error)}
    else:
        values |= _labelled(opened, labelling, number, queue) | _asked_next(labelling, labeller, key)
    values |= _tried(opened, desk.tried(opened.name))
    return Page("label.html.j2", f"Label {opened.name}", values, run=opened.name, tab="Label", state=shown)


def _labelled(opened: OpenRun, labelling: Labelling, number: int, queue: str) -> dict[str, Any]:
    """Tells how far people are."""
    asked, choices = labelling.asked, labelling.choices
    people = labellers(asked, choices)
    return {
        "round": number,
        "total": len(asked.questions),
        "answered": labelling.answered,
        "left": len(labelling.questions),
        "done": _done(labelling, queue),
        "queues": [(name, _TITLES[name], told, len(labelling.left_in(name))) for name, told in QUEUES.items()],
        "waits": _waits(opened, asked, choices),
        "people": people,
        "agreements": agreements(asked, choices),
        "command": f"rondo label {opened.name}@{number} --queue {queue}{root_option(opened.store)}",
    }


def _tried(opened: OpenRun, pairs: Sequence[TriedPair]) -> dict[str, Any]:
    """Tells what people prefer of the answers that they tried: checkpoint against checkpoint, and the newest pairs."""
    against: dict[tuple[str, str], list[int]] = {}
    for pair in pairs:
        first, second = (_checkpoint(answer) for answer in pair.answers)
        names = (first, second) if first <= second else (second, first)
        share = pair.share if names[0] == first else 1 - pair.share
        against.setdefault(names, [0, 0, 0])[0 if share > 0.5 else 1 if share == 0.5 else 2] += 1
    shown = [
        {
            "prompt": _clipped(_prompt_of(pair), _LONGEST_TRIED),
            "answers": [(_checkpoint(answer), _clipped(answer["text"].strip(), _LONGEST_TRIED)) for answer in sides],
            "tie": pair.ordered is None,
            "people": ", ".join(said["labeller"] for said in pair.choices),
            "note": "; ".join(said["note"] for said in pair.choices if said.get("note")),
            "time": pair.choices[-1]["time"][:16].replace("T", " "),
        }
        for pair in reversed(pairs[-_MOST_TRIED:])
        for sides in [pair.ordered or pair.answers]
    ]
    return {
        "tried": shown,
        "tried_count": len(pairs),
        "against": [(*names, *counts) for names, counts in against.items()],
        "export_command": f"rondo export {opened.name} --tried --to DIR{root_option(opened.store)}",
    }


def _checkpoint(answer: Mapping[str, Any]) -> str:
    return f"{answer['run']}@{answer['round']}"


def _prompt_of(pair: TriedPair) -> str:
    messages = pair.prompt.get("messages")
    return written_out(messages) if messages else str(pair.prompt.get("text"))


def _done(labelling: Labelling, queue: str) -> str:
    """Says why no question is left."""
    total = len(labelling.asked.questions)
    if total and labelling.answered == total:
        return "You have answered every pair of this round."
    if labelling.queued:
        return "You have answered every pair of this queue; others have more."
    return _NONE_IN[queue]


def _waits(opened: OpenRun, asked: RoundQuestions, choices: Sequence[Choice]) -> str | None:
    """Says what the run waits for; None if it does not wait for this round's labels."""
    if waits_for_people(opened.run) != asked.round:
        return None
    missing = missing_labels(asked.recipe, asked.questions, choices)
    if missing:
        return f"The run waits for {counted(missing, 'more label')}."
    if opened.run.state == "running":
        return "The run has all labels that it waits for, and goes on by itself."
    command = f"rondo resume {opened.name}{root_option(opened.store)}"
    return f"The run has all labels that it waits for: '{command}', or its next scheduled run, goes on."


def _asked_next(labelling: Labelling, labeller: str, key: str | None) -> dict[str, Any]:
    """Returns what the form shows; nothing for nobody, and if no question is left."""
    last = labelling.last if labeller else None
    shared = {
        "criteria": labelling.asked.criteria,
        "longest_note": LONGEST_NOTE,
        "last": last and last.key,
    }
    question = labelling.asked.question(key) if key else next(iter(labelling.questions), None)
    if not labeller or question is None:
        return {**shared, "question": None}
    prompt = question.prompt
    left, right = labelling.shown(question)
    text = written_out(prompt.messages) if prompt.messages else prompt.prompt_text
    return {
        **shared,
        "question": question.key,
        "prompt": _clipped(text.strip()),
        "sides": [("left", "A", _clipped(left.text.strip())), ("right", "B", _clipped(right.text.strip()))],
        "given": labelling.given(question),
    }


def _clipped(text: str, longest: int = _LONGEST) -> tuple[str, int]:
    """Cuts a text for the page, and says how many characters were cut."""
    return text[:longest], max(len(text) - longest, 0)
