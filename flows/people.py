"""People in a round: waiting for their choices, and letting these decide.

To wait is to stop: the command ends, and ``rondo resume`` goes on from what is committed, today or next week. A flow
that Prefect suspends would need a server that outlives the command, and here Prefect's is as temporary as the command.
"""

from collections.abc import Sequence
from typing import Any

from flows.errors import WaitingForLabelsError
from flows.questions import questions_of
from flows.session import Session, current
from flows.shards import Shard, files_of
from flows.step import step
from pipeline.config import PeopleJudge
from pipeline.errors import DataError
from pipeline.human_labels import unanswered
from pipeline.records import content_id
from storage.manifest import Entry


@step("{run} r{number} wait for people")
async def wait_for_judges(run: str, number: int) -> None:
    """Where people are the judge: goes on once somebody has answered each question of the round.

    Raises:
        WaitingForLabelsError: somebody has to; the run stops, and what is committed stays.
    """
    session = current()
    if isinstance(session.recipe.judge, PeopleJudge):
        questions = questions_of(session.store, session.run, number, session.recipe)
        _wait(session, number, unanswered(questions, session.choices(number)))


@step("{run} r{number} override")
async def override(run: str, number: int, through: Sequence[Shard]) -> Entry | None:
    """The round's preferences with people's choices in place of the judge's; None where the recipe asks for none.

    Args:
        through: all shards of the round.

    Raises:
        WaitingForLabelsError: fewer pairs are labelled than the recipe waits for.
        DataError: people hold the answers of every pair equal.
    """
    session = current()
    config = session.recipe.people
    if config is None:
        return None
    choices = session.choices(number)
    preferences = files_of(shard.preferences for shard in through)
    questions = questions_of(session.store, session.run, number, session.recipe, preferences)
    missing = unanswered(questions, choices)
    _wait(session, number, min(config.wait_for, len(questions)) - (len(questions) - missing))
    keys = {question.key for question in questions}
    asked = [choice for choice in choices if choice["question"] in keys]
    inputs = content_id([[file.sha256 for file in preferences], asked])
    if done := session.find(number, "preferences", inputs):
        return done
    files = {
        "prompts": session.files(0, "prompts"),
        "candidates": files_of(shard.candidates for shard in through),
        "preferences": preferences,
    }
    given: dict[str, Any] = {name: [file.to_json() for file in found] for name, found in files.items()}
    file, count = await session.judge.call("override", **given, round=number, choices=asked)
    if not count:
        raise DataError(
            f"people hold the answers of every pair of round {number} of run '{run}' equal: nothing is left"
        )
    return session.commit(number, "preferences", session.references([file]), {"preferences": count}, inputs)


def _wait(session: Session, number: int, missing: int) -> None:
    if missing > 0:
        name = session.run.name
        raise WaitingForLabelsError(
            f"waiting for {missing} label{'s' if missing > 1 else ''}: rondo label {name}@{number}, then rondo resume "
            f"{name}; what is committed stays"
        )
