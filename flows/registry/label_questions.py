"""The pairs of completions that people are asked about in a round."""

from collections.abc import Iterable, Sequence

from pipeline.judges.base import seen_by
from pipeline.judges.human import HumanConfig
from pipeline.judges.support.human_labels import (
    Choice,
    Question,
    questions_of_candidates,
    questions_of_preferences,
    unanswered,
)
from pipeline.judges.support.tables import judge_items
from pipeline.recipe import Recipe
from storage.errors import NotCommittedError
from storage.log.manifest import FileRef, key_of
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.shards import read_table


def questions_of(
    store: Store, run: Run, number: int, recipe: Recipe, preferences: Sequence[FileRef] | None = None
) -> list[Question]:
    """Lists what people are asked in a round: pairs of its candidates if people are the judge, else its preferences.

    Args:
        preferences: of the judge; by default those that the round has committed.

    Raises:
        NotCommittedError: the round has no candidates yet, or no preferences.
    """
    stage = "candidates" if isinstance(recipe.judge, HumanConfig) else "preferences"
    found = preferences or (_of_judge(run, number) if stage == "preferences" else run.files(number, stage))
    if not found:
        raise NotCommittedError(f"round {number} of run '{run.name}' has no {stage} yet: there is nothing to label")
    candidates = read_table(store, run.files(number, "candidates"))
    items = judge_items(read_table(store, run.files(0, "prompts")), candidates)
    if isinstance(recipe.judge, HumanConfig):
        return questions_of_candidates(seen_by(recipe.judge, items), recipe.judge.pairs, recipe.seed)
    return questions_of_preferences(items, read_table(store, found))


def missing_labels(recipe: Recipe, questions: Sequence[Question], choices: Iterable[Choice]) -> int:
    """Counts the labels that a round waits for still: 0 if it waits for none, as without people in its recipe."""
    missing = unanswered(questions, choices)
    if isinstance(recipe.judge, HumanConfig):
        return missing
    wanted = 0 if recipe.people is None else recipe.people.wait_for
    return max(missing - max(len(questions) - wanted, 0), 0)


def _of_judge(run: Run, number: int) -> list[FileRef]:
    """Returns a round's preferences as the judge orders them.

    People's choices make a new table, without the pairs on which they are divided. It is committed as a whole, and
    what the judge said in shards.
    """
    shards = {key_of(entry).shard: entry for entry in run.entries(number, "preferences")}
    shards.pop(None, None)
    return [file for entry in shards.values() for file in entry.files] or run.files(number, "preferences")
