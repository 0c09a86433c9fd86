"""People in a round: waiting for their choices, and letting these decide.

To wait is to stop: the command ends, and ``rondo resume`` goes on from what is committed, today or next week. Where a
Prefect server runs and the recipe says how long, the command waits in it instead; see
``flows/round/wait_for_labels.py``. Either way the store keeps since when people are asked, and that a round went on
without them.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.host.text import counted
from flows.prefect_api.limits import without_gpus
from flows.registry.label_questions import questions_of
from flows.remote.worker_process import WorkerProcess
from flows.round.context import Session, current
from flows.round.shards import Shard, files_of
from flows.round.step import step
from flows.round.wait_for_labels import wait_in_prefect
from flows.workers.references import as_json, hashes
from pipeline.config import PeopleConfig, PeopleJudge
from pipeline.errors import DataError
from pipeline.judges.human_labels import unanswered
from pipeline.records import content_id
from storage.log.manifest import Entry


@step("{run} r{number} wait for people")
async def wait_for_judges(run: str, number: int) -> None:
    """Where people are the judge: goes on once somebody has answered each question of the round, or stops the run."""
    session = current()
    if isinstance(session.recipe.judge, PeopleJudge):
        questions = questions_of(session.store, session.run, number, session.recipe)

        def missing() -> int:
            return unanswered(questions, session.newest_choices(number))

        await _wait(session, number, session.recipe.judge, missing)


@step("{run} r{number} override")
async def override(run: str, number: int, through: Sequence[Shard]) -> Entry | None:
    """The round's preferences with people's choices in place of the judge's; None where the recipe asks for none.

    The run stops where fewer pairs are labelled than the recipe waits for.

    Args:
        through: all shards of the round.

    Raises:
        DataError: people hold the answers of every pair equal.
    """
    session = current()
    config = session.recipe.people
    if config is None:
        return None
    preferences = files_of(shard.preferences for shard in through)
    questions = questions_of(session.store, session.run, number, session.recipe, preferences)
    spared = max(len(questions) - config.wait_for, 0)
    await _wait(session, number, config, lambda: unanswered(questions, session.newest_choices(number)) - spared)
    choices = session.choices(number)
    keys = {question.key for question in questions}
    asked = [choice for choice in choices if choice["question"] in keys]
    inputs = content_id([hashes(preferences), asked])
    if done := session.find(number, "preferences", inputs):
        return done
    files = {
        "prompts": session.files(0, "prompts"),
        "candidates": files_of(shard.candidates for shard in through),
        "preferences": preferences,
    }
    given: dict[str, Any] = {name: as_json(found) for name, found in files.items()}
    file, count = await session.judge.call("override", **given, round=number, choices=asked)
    if not count:
        raise DataError(
            f"people hold the answers of every pair of round {number} of run '{run}' equal: nothing is left"
        )
    return session.commit(number, "preferences", session.references([file]), {"preferences": count}, inputs)


async def _wait(session: Session, number: int, config: PeopleConfig | PeopleJudge, missing: Callable[[], int]) -> None:
    """Returns once no label is missing, or the round goes on without; the choices are those of then.

    Where neither is so, and the command has waited as long as the recipe says, the run stops.
    """
    if session.find(number, "unlabelled") or missing() <= 0:
        return
    outcome, name = None, session.run.name
    task = f"{missing()} labels are missing: rondo label {name}@{number}"
    session.notifier.tell("labels", f"{name}: labels are missing", task)
    if config.wait_minutes:
        # Of the first time that they were asked, whatever has ended or begun anew since.
        asked = datetime.fromisoformat(session.commit(number, "asked", []).time)
        outcome = await _ask(session, config, task, missing, asked + timedelta(minutes=config.wait_minutes))
    left = missing()
    if left <= 0:
        return
    many = counted(left, "label")
    if outcome == "judge" or (outcome == "time" and isinstance(config, PeopleConfig) and config.on_timeout == "judge"):
        why = f"after {config.wait_minutes:g} minutes" if outcome == "time" else "as somebody chose in Prefect"
        session.commit(number, "unlabelled", [], {"missing": left, "why": f"went on without {many}, {why}"})
        return
    await session.control.await_labels(
        f"waiting for {many}: rondo label {name}@{number}, then rondo resume {name} or the next scheduled run goes on; "
        "what is committed stays"
    )


async def _ask(
    session: Session, config: PeopleConfig | PeopleJudge, task: str, missing: Callable[[], int], deadline: datetime
) -> str | None:
    """How the wait has ended; None where it has to be done by stopping, for want of a server."""
    control = session.control
    if datetime.now(UTC) >= deadline:
        return "time"
    if not control.watched or control.flow_run is None:
        return None
    session.display.say(f"waiting in Prefect until {deadline:%Y-%m-%d %H:%M} UTC: {task}")
    own = [worker for worker in session.workers if isinstance(worker, WorkerProcess)]  # replicas are the cluster's
    await asyncio.gather(*(worker.dismiss() for worker in own))
    control.waits_for_people = True
    async with without_gpus(session.display):
        outcome = await wait_in_prefect(
            control.flow_run, task, missing, deadline, has_judge=isinstance(config, PeopleConfig)
        )
    control.waits_for_people = False
    return outcome
