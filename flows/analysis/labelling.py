"""A person who labels: which questions are left, in which order the answers stand, and what is kept of each choice."""

import random
from collections.abc import Sequence
from typing import Literal

from flows.registry.catalog import existing_store, parse_source
from flows.registry.label_questions import questions_of
from flows.registry.resume import recipe_of
from pipeline.judges import JudgedCandidate
from pipeline.judges.support.human_labels import ANSWERED, Question, digest
from storage.errors import NotCommittedError
from storage.log.run import Run
from storage.tables.shared_values import Labels

Choice = Literal["a", "b", "tie", "skip"]


class Labelling:
    """One person's labels of one round. Each choice is durable when the method returns.

    Attributes:
        questions: those that this labeller has not answered yet, the ones that nobody has answered first.

    Raises:
        ConfigError: it is not RUN@ROUND.
        NotCommittedError: the round has nothing to label yet.
    """

    def __init__(self, source: str, labeller: str, seed: int, root: str) -> None:
        name, number = parse_source(source)
        store = existing_store(root)
        self._run = store.run(name)
        self._round = _newest_round(self._run) if number is None else number
        self._labels, self._labeller, self._seed = Labels(store), labeller, seed
        asked = questions_of(store, self._run, self._round, recipe_of(self._run))
        answers = [choice for choice in self._labels.newest() if choice["choice"] in ANSWERED]
        mine = {choice["question"] for choice in answers if choice["labeller"] == labeller}
        counts = [sum(choice["question"] == question.key for choice in answers) for question in asked]
        order = sorted(range(len(asked)), key=lambda place: counts[place])
        self.questions: Sequence[Question] = [asked[place] for place in order if asked[place].key not in mine]

    def shown(self, question: Question) -> tuple[JudgedCandidate, JudgedCandidate]:
        """The answers as A and B: their order is drawn by the seed, the labeller and the question."""
        rng = random.Random(f"{self._seed}/{self._labeller}/{question.key}")  # noqa: S311  nothing here is secret
        first, second = question.answers
        return (first, second) if rng.random() < 0.5 else (second, first)

    def choose(self, question: Question, choice: Choice) -> None:
        """Keeps a choice between the answers as they were shown."""
        better = {"a": 0, "b": 1}.get(choice)
        self._add(question, choice if better is None else "better", better)

    def withdraw(self, question: Question) -> None:
        """Takes a choice back: the question is open again."""
        self._add(question, "withdrawn", None)

    def _add(self, question: Question, choice: str, better: int | None) -> None:
        shown = self.shown(question)
        texts = [digest(answer.text) for answer in shown]
        self._labels.add(
            question.key,
            self._labeller,
            {
                "format": 1,
                "prompt_id": question.prompt.prompt_id,
                "choice": choice,
                "better": None if better is None else texts[better],
                "shown": texts,
                "seed": self._seed,
                "run": self._run.name,
                "round": self._round,
                "candidates": [answer.index for answer in shown],
            },
        )


def _newest_round(run: Run) -> int:
    """Choose the round that is at work, which may wait for labels, or else the newest finished one."""
    rounds = [*sorted({entry.round for entry in run.unfinished()}), *reversed(run.finished)]
    if not rounds:
        raise NotCommittedError(f"run '{run.name}' has no round yet: there is nothing to label")
    return rounds[0]
