"""A person who labels: which questions are left, in which order the answers stand, and what is kept of each choice."""

import random
import time
from collections.abc import Sequence
from typing import Literal

from flows.registry.catalog import existing_store, parse_source
from flows.registry.label_questions import questions_of
from flows.registry.resume import recipe_of
from pipeline.judges import JudgedCandidate
from pipeline.judges.llm import LlmConfig
from pipeline.judges.support.human_labels import ANSWERED, Question, digest
from storage.errors import NotCommittedError
from storage.log.run import Run
from storage.tables.shared_values import Labels

Choice = Literal["a", "b", "tie", "skip"]


class Labelling:
    """One person's labels of one round. Each choice is durable when the method returns.

    Attributes:
        questions: those that this labeller has not answered yet, the ones that nobody has answered first.
        criteria: what makes an answer good, as a judge of the run that is a language model is told; None without one.

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
        recipe = recipe_of(self._run)
        asked = questions_of(store, self._run, self._round, recipe)
        answers = [choice for choice in self._labels.newest() if choice["choice"] in ANSWERED]
        mine = {choice["question"] for choice in answers if choice["labeller"] == labeller}
        counts = [sum(choice["question"] == question.key for choice in answers) for question in asked]
        order = sorted(range(len(asked)), key=lambda place: counts[place])
        self.questions: Sequence[Question] = [asked[place] for place in order if asked[place].key not in mine]
        self.criteria = next((part.criteria for part in recipe.judge_parts if isinstance(part, LlmConfig)), None)

    def shown(self, question: Question) -> tuple[JudgedCandidate, JudgedCandidate]:
        """Returns the answers as A and B; their order is drawn by the seed, the labeller and the question."""
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


def _newest_round(run: Run) -> int:
    """Chooses the round that is at work, which may wait for labels, or else the newest finished one."""
    rounds = [*sorted({entry.round for entry in run.unfinished()}), *reversed(run.finished)]
    if not rounds:
        raise NotCommittedError(f"run '{run.name}' has no round yet: there is nothing to label")
    return rounds[0]
