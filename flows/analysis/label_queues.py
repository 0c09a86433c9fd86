"""The pairs of a round that people can be asked about, and the orders in which they are: the queues."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flows.registry.label_questions import questions_of
from flows.registry.resume import recipe_of
from pipeline.errors import ConfigError
from pipeline.judges.human import HumanConfig
from pipeline.judges.llm import LlmConfig
from pipeline.judges.support.human_labels import ANSWERED, DECIDED, Choice, Question
from pipeline.recipe import Recipe
from pipeline.records import components_of
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.shards import read_table

QUEUES: Mapping[str, str] = {
    "asked": "what the run asks for: the pairs that nobody has answered come first",
    "random": "the pairs in a random order",
    "margin": "the smallest differences of the judge's scores first",
    "judges": "the pairs that the judges order differently",
    "people": "the pairs on which those who labelled differ",
}
"""The queues by name, and what comes in them."""


@dataclass(frozen=True, eq=False)
class RoundQuestions:
    """What people can be asked about a round, and what its judges said of it.

    Attributes:
        run: the run's name.
        round: the round.
        recipe: the run's.
        questions: pairs of completions, in the round's order.
        differences: by the name of a judge and the key of a question, the score of the question's first completion
            less that of its second, in the judge's units. The first judge is the training judge; the members of an
            ensemble follow it.
    """

    run: str
    round: int
    recipe: Recipe
    questions: Sequence[Question]
    differences: Mapping[str, Mapping[str, float]]

    @property
    def criteria(self) -> str | None:
        """Returns what a judge of the run that is a language model is told makes an answer good; None without one."""
        return next((part.criteria for part in self.recipe.judge_parts if isinstance(part, LlmConfig)), None)

    @cached_property
    def by_key(self) -> Mapping[str, Question]:
        """Returns the questions by key."""
        return {question.key: question for question in self.questions}

    def question(self, key: str) -> Question:
        """Returns the question with this key.

        Raises:
            ConfigError: the round has no such question.
        """
        if key not in self.by_key:
            raise ConfigError(
                f"'{key}' is no question of {self.run}@{self.round}: its pairs may have changed since the page was "
                "loaded; open the page again"
            )
        return self.by_key[key]

    @cached_property
    def disputes(self) -> Mapping[str, float]:
        """Returns the share of judges in the minority, by the key of each question that two judges order differently.

        An ensemble counts by its members alone.
        """
        names = list(self.differences)
        voters = [self.differences[name] for name in (names[1:] if len(names) > 2 else names)]
        found = {}
        for question in self.questions:
            votes = [judge[question.key] for judge in voters if judge.get(question.key)]
            ahead = sum(vote > 0 for vote in votes)
            if 0 < ahead < len(votes):
                found[question.key] = min(ahead, len(votes) - ahead) / len(votes)
        return found


def read_questions(store: Store, run: Run, number: int) -> RoundQuestions:
    """Reads what people can be asked about a round.

    Raises:
        NotCommittedError: the round has nothing to label yet.
    """
    recipe = recipe_of(run)
    questions = questions_of(store, run, number, recipe)
    return RoundQuestions(run.name, number, recipe, questions, _differences(store, run, number, recipe, questions))


def in_queue(asked: RoundQuestions, queue: str, choices: Iterable[Choice], labeller: str, seed: int) -> list[Question]:
    """Lists the questions of a queue, first to last, also those that the labeller has answered.

    Args:
        choices: the newest choice of each labeller to each question.

    Raises:
        ConfigError: there is no such queue.
    """
    if queue not in QUEUES:
        raise ConfigError(f"there is no queue '{queue}': give one of {', '.join(QUEUES)}")
    questions = list(asked.questions)
    if queue == "random":
        random.Random(f"{seed}/{labeller}/queue").shuffle(questions)  # noqa: S311  nothing here is secret
        return questions
    if queue == "margin":
        margins = next(iter(asked.differences.values()), {})
        return sorted((q for q in questions if q.key in margins), key=lambda question: abs(margins[question.key]))
    if queue == "judges":
        disputes = asked.disputes
        return sorted((q for q in questions if q.key in disputes), key=lambda question: -disputes[question.key])
    if queue == "people":
        said: dict[str, set[str | None]] = {}
        for choice in choices:
            if choice["choice"] in DECIDED:
                said.setdefault(choice["question"], set()).add(choice["better"])
        return [question for question in questions if len(said.get(question.key, ())) > 1]
    answers = Counter(choice["question"] for choice in choices if choice["choice"] in ANSWERED)
    return sorted(questions, key=lambda question: answers[question.key])


def _differences(
    store: Store, run: Run, number: int, recipe: Recipe, questions: Sequence[Question]
) -> dict[str, dict[str, float]]:
    """Reads by how much each judge prefers the first completion; nothing of people, who are no judge here."""
    files = run.files(number, "judgments")
    if not files or isinstance(recipe.judge, HumanConfig):
        return {}
    name, members = recipe.judge.label, [part.label for part in recipe.judge.parts()[1:]]
    scores: dict[str, dict[tuple[str, int], float]] = {judge: {} for judge in (name, *members)}
    columns = ["prompt_id", "candidate", "judge", "score", "components"]
    for row in read_table(store, files, columns, verify=False).to_pylist():
        of_members = components_of(row["components"]) if members else {}
        said = {name: row["score"] if row["judge"] == name else None, **{m: of_members.get(m) for m in members}}
        for judge, score in said.items():
            if score is not None:
                scores[judge][row["prompt_id"], row["candidate"]] = score
    found: dict[str, dict[str, float]] = {}
    for judge, of_judge in scores.items():
        for question in questions:
            pair = [of_judge.get((question.prompt.prompt_id, answer.index)) for answer in question.answers]
            if pair[0] is not None and pair[1] is not None:
                found.setdefault(judge, {})[question.key] = pair[0] - pair[1]
    return found
