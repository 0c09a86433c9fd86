"""A person who labels: which questions are left, in which order the answers stand, and what is kept of each choice."""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flows.analysis.label_queues import RoundQuestions, in_queue, read_questions
from flows.registry.catalog import existing_store, parse_source
from pipeline.errors import ConfigError
from pipeline.judges.base import JudgedCandidate
from pipeline.judges.support.human_labels import ANSWERED, Question, digest
from storage.errors import NotCommittedError
from storage.log.run import Run
from storage.tables.shared_values import Labels

Choice = Literal["a", "b", "tie", "skip"]

TAGS = ("correct", "clear", "complete", "concise", "safe", "style")
"""Reasons for a choice that people can tick."""
LONGEST_NOTE = 2000
"""Characters of a note."""


class Labelling:
    """One person's labels of one round. Each choice is durable when the method returns.

    Args:
        asked: what people can be asked about the round.
        labels: of all people.
        labeller: the person's name.
        seed: of the order of the answers, and of the random queue.
        queue: which questions come, and in which order; one of ``QUEUES``.

    Attributes:
        asked: as it was given.
        choices: the newest choice of each labeller to each question, as they were at the beginning.
        queued: the questions of the queue, also those that this labeller has answered.
        questions: those that this labeller has not answered yet, in the order of the queue.

    Raises:
        ConfigError: there is no such queue.
    """

    def __init__(
        self, asked: RoundQuestions, labels: Labels, labeller: str, seed: int = 0, queue: str = "asked"
    ) -> None:
        self.asked = asked
        self._labels, self._labeller, self._seed = labels, labeller, seed
        self.choices = labels.newest()
        self._mine = {choice["question"]: choice for choice in self.choices if choice["labeller"] == labeller}
        self.queued = in_queue(asked, queue, self.choices, labeller, seed)
        self.questions = self._open(self.queued)

    @classmethod
    def open(cls, source: str, labeller: str, seed: int, root: str, queue: str = "asked") -> "Labelling":
        """Begins or goes on with the labels of RUN@ROUND; of RUN alone it is the round at work, or the newest.

        Raises:
            ConfigError: it is not RUN@ROUND, or there is no such root or queue.
            NotCommittedError: the round has nothing to label yet.
        """
        name, number = parse_source(source)
        store = existing_store(root)
        run = store.run(name)
        asked = read_questions(store, run, newest_round(run) if number is None else number)
        return cls(asked, Labels(store), labeller, seed, queue)

    def left_in(self, queue: str) -> Sequence[Question]:
        """Lists the questions of a queue that this labeller has not answered yet, the next one first.

        Raises:
            ConfigError: there is no such queue.
        """
        return self._open(in_queue(self.asked, queue, self.choices, self._labeller, self._seed))

    @property
    def answered(self) -> int:
        """Counts the questions of the round, of all queues, that this labeller has answered."""
        return sum(self._is_answered(key) for key in self.asked.by_key)

    @property
    def last(self) -> Question | None:
        """Returns the question of this labeller's newest choice in the round; None if there is none to take back."""
        given = [self._mine[key] for key in self.asked.by_key if self._is_answered(key)]
        return self.asked.by_key[max(given, key=lambda choice: choice["time"])["question"]] if given else None

    def given(self, question: Question) -> Choice | None:
        """Returns this labeller's choice between the answers as they are shown; None without one."""
        if not self._is_answered(question.key):
            return None
        kept = self._mine[question.key]
        if kept["choice"] != "better":
            return "tie" if kept["choice"] == "tie" else "skip"
        return "a" if kept["better"] == digest(self.shown(question)[0].text) else "b"

    def shown(self, question: Question) -> tuple[JudgedCandidate, JudgedCandidate]:
        """Returns the answers as A and B; their order is drawn by the seed, the labeller and the question."""
        return shown_order(question, self._labeller, self._seed)

    def choose(self, question: Question, choice: Choice, tags: Sequence[str] = (), note: str = "") -> None:
        """Keeps a choice between the answers as they were shown; to say the same again changes nothing.

        Args:
            tags: the reasons, of ``TAGS``.
            note: what the labeller has to say beside them.

        Raises:
            ConfigError: an unknown tag, or a note that is too long.
        """
        if unknown := sorted(set(tags) - set(TAGS)):
            raise ConfigError(f"'{unknown[0]}' is no reason that can be given: give some of {', '.join(TAGS)}")
        note = note.replace("\r\n", "\n")  # as browsers send line ends
        if len(note) > LONGEST_NOTE:
            raise ConfigError(f"the note has {len(note):,} characters: give at most {LONGEST_NOTE:,}")
        shown = self.shown(question)
        better = {"a": shown[0], "b": shown[1]}.get(choice)
        said = {"tags": [tag for tag in TAGS if tag in tags], "note": note.strip()}
        self.keep(question, choice if better is None else "better", better, {k: v for k, v in said.items() if v})

    def withdraw(self, question: Question) -> None:
        """Takes a choice back: the question is open again."""
        self.keep(question, "withdrawn", None, {})

    def keep(
        self,
        question: Question,
        choice: str,
        better: JudgedCandidate | None,
        more: dict[str, Any],
        shown: tuple[JudgedCandidate, JudgedCandidate] | None = None,
        *,
        unless_known: bool = False,
    ) -> bool:
        """Keeps a choice as the newest of this labeller; False if it is that already, whoever has kept it.

        Args:
            choice: better, tie, skip or withdrawn.
            better: the better answer, for ``better``.
            more: what else is kept of it: tags, a note, and the program that it was made in, if that was another one.
            shown: the answers as the labeller saw them, if not in the order that is drawn here.
            unless_known: keep nothing if this labeller has ever said the same of the question, whatever came after.
        """
        kept, changed = keep_choice(
            self._labels, question, self._labeller, choice, better, shown or self.shown(question),
            {**more, "seed": self._seed, "run": self.asked.run, "round": self.asked.round}, unless_known=unless_known,
        )  # fmt: skip
        if kept is not None:
            self._mine[question.key] = kept
        return changed

    def _open(self, questions: Sequence[Question]) -> Sequence[Question]:
        return [question for question in questions if not self._is_answered(question.key)]

    def _is_answered(self, key: str) -> bool:
        return key in self._mine and self._mine[key]["choice"] in ANSWERED


def _meaning(choice: Mapping[str, Any]) -> tuple[object, ...]:
    """Returns that of a choice in which it differs from another one."""
    return choice["choice"], choice.get("better"), frozenset(choice.get("tags", ())), choice.get("note", "")


def keep_choice(
    labels: Labels,
    question: Question,
    labeller: str,
    choice: str,
    better: JudgedCandidate | None,
    shown: tuple[JudgedCandidate, JudgedCandidate],
    more: Mapping[str, Any],
    *,
    unless_known: bool = False,
) -> tuple[dict[str, Any] | None, bool]:
    """Keeps a choice as the newest of a labeller, durably, if it says anything new; see :meth:`Labelling.keep`.

    Args:
        more: what else is kept of it, such as the run.

    Returns:
        The newest choice of this labeller to the question, None if there is none; and whether this is it.
    """
    said = {"choice": choice, "better": None if better is None else digest(better.text), **more}
    # Read anew: another page or terminal of the same person may have kept one since.
    earlier = labels.history(question.key, labeller)
    if _meaning(said) in map(_meaning, (earlier if unless_known else earlier[-1:]) or [{"choice": "withdrawn"}]):
        return (earlier[-1] if earlier else None), False
    value = {
        "format": 1,
        "prompt_id": question.prompt.prompt_id,
        **said,
        "shown": [digest(answer.text) for answer in shown],
        "candidates": [answer.index for answer in shown],
    }
    return labels.add(question.key, labeller, value), True


def shown_order(question: Question, labeller: str, seed: int) -> tuple[JudgedCandidate, JudgedCandidate]:
    """Returns the answers as a labeller is shown them: the order is drawn by seed, labeller and question.

    It does not follow from the order in which the question has them, which may be a judge's.
    """
    rng = random.Random(f"{seed}/{labeller}/{question.key}")  # noqa: S311  nothing here is secret
    first, second = sorted(question.answers, key=lambda answer: digest(answer.text))
    return (first, second) if rng.random() < 0.5 else (second, first)


class Answers:
    """A labeller's way through the questions: forward and back, with each choice kept, changed or taken back.

    Attributes:
        questions: those that are asked.
        place: of the question that is shown; their number, once none is open.
    """

    def __init__(self, labelling: Labelling, questions: Sequence[Question]) -> None:
        self._labelling, self.questions, self.place = labelling, questions, 0
        self._given: dict[int, Choice] = {}
        self._before: list[tuple[int, Choice | None]] = []
        self._began = time.monotonic()

    @property
    def answered(self) -> int:
        """Says how many questions have a choice."""
        return len(self._given)

    @property
    def chosen(self) -> Choice | None:
        """Returns the choice of the question that is shown; None if it has none."""
        return self._given.get(self.place)

    @property
    def per_hour(self) -> float:
        """Returns the answered questions an hour, since the first was shown."""
        return self.answered / max(time.monotonic() - self._began, 1e-9) * 3600

    def choose(self, choice: Choice) -> None:
        """Keeps a choice of the question that is shown, and goes to the next one that is open."""
        self._before.append((self.place, self.chosen))
        self._keep(self.place, choice)
        later = [*range(self.place + 1, len(self.questions)), *range(self.place)]
        self.place = next((place for place in later if place not in self._given), len(self.questions))

    def undo(self) -> bool:
        """Shows the question of the last choice, with that as it was before; False if there is none."""
        if not self._before:
            return False
        self.place, before = self._before.pop()
        if before is None:
            del self._given[self.place]
            self._labelling.withdraw(self.questions[self.place])
        else:
            self._keep(self.place, before)
        return True

    def move(self, steps: int) -> None:
        """Shows an earlier or a later question; what is chosen stays."""
        self.place = min(max(self.place + steps, 0), len(self.questions) - 1)

    def _keep(self, place: int, choice: Choice) -> None:
        self._given[place] = choice
        self._labelling.choose(self.questions[place], choice)


def newest_round(run: Run) -> int:
    """Chooses the round that is at work, which may wait for labels, or else the newest finished one.

    Raises:
        NotCommittedError: the run has no round yet.
    """
    rounds = [*sorted({entry.round for entry in run.unfinished()}), *reversed(run.finished)]
    if not rounds:
        raise NotCommittedError(f"run '{run.name}' has no round yet: there is nothing to label")
    return rounds[0]
