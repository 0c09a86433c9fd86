"""People in a round: waiting for their choices, and letting these decide.

To wait is to stop: the command ends, and ``rondo resume`` goes on from what is committed, today or next week. If a
Prefect server runs and the recipe says how long, the command waits in it instead; see
``flows/round/wait_for_labels.py``. Either way the store keeps since when people are asked, and that a round went on
without them.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from flows.host.text import counted
from flows.registry.label_questions import missing_labels, questions_of
from flows.round.context import RoundContext
from flows.round.shards import Shard, files_of
from flows.round.step import step
from flows.round.wait_for_labels import wait_in_prefect
from flows.workers.judge import JudgeWorker
from flows.workers.references import hashes
from pipeline.judges.human import HumanConfig, HumanFeedbackConfig
from pipeline.records import content_id
from storage.log.manifest import Entry


@step("{context.name} r{number} wait for people")
async def wait_for_judges(context: RoundContext, number: int) -> None:
    """Waits, if people are the judge, until each question of the round is answered, or stops the run."""
    if isinstance(context.recipe.judge, HumanConfig):
        questions = questions_of(context.store, context.run, number, context.recipe)

        def missing() -> int:
            return missing_labels(context.recipe, questions, context.newest_choices(number))

        await _wait(context, number, context.recipe.judge, missing)


@step("{context.name} r{number} override")
async def override(context: RoundContext, number: int, done: Sequence[Shard]) -> Entry | None:
    """Builds the round's preferences with people's choices in place of the judge's; None if the recipe asks for none.

    The run stops if fewer pairs are labelled than the recipe waits for.

    Args:
        done: all shards of the round.
    """
    config = context.recipe.people
    if config is None:
        return None
    preferences = files_of(shard.preferences for shard in done)
    questions = questions_of(context.store, context.run, number, context.recipe, preferences)
    await _wait(
        context, number, config, lambda: missing_labels(context.recipe, questions, context.newest_choices(number))
    )
    choices = context.choices(number)
    keys = {question.key for question in questions}
    asked = [choice for choice in choices if choice["question"] in keys]
    inputs = content_id([hashes(preferences), asked])
    if by_people := context.find(number, "preferences", inputs):
        return by_people
    answer = await context.workers.judge.call(
        JudgeWorker.override,
        prompts=context.files(0, "prompts"), candidates=files_of(shard.candidates for shard in done),
        preferences=preferences, round=number, choices=asked,
    )  # fmt: skip
    built = answer.result
    return context.commit(number, "preferences", [built.file], {"preferences": built.count}, inputs)


async def _wait(
    context: RoundContext, number: int, config: HumanFeedbackConfig | HumanConfig, missing: Callable[[], int]
) -> None:
    """Returns once no label is missing, or once the round goes on without them; the choices are those of then.

    If neither is so when the command has waited as long as the recipe says, the run stops.
    """
    if context.find(number, "unlabelled") or missing() <= 0:
        return
    outcome, name = None, context.run.name
    task = f"{missing()} labels are missing: rondo label {name}@{number}"
    context.monitors.notifier.tell("labels", f"{name}: labels are missing", task)
    if config.wait_minutes:
        # The time at which they were first asked, whatever has ended or begun anew since.
        asked = datetime.fromisoformat(context.commit(number, "asked", []).time)
        outcome = await _ask(context, config, task, missing, asked + timedelta(minutes=config.wait_minutes))
    left = missing()
    if left <= 0:
        return
    many = counted(left, "label")
    if outcome == "judge" or (
        outcome == "time" and isinstance(config, HumanFeedbackConfig) and config.on_timeout == "judge"
    ):
        why = f"after {config.wait_minutes:g} minutes" if outcome == "time" else "as somebody chose in Prefect"
        context.commit(number, "unlabelled", [], {"missing": left, "why": f"went on without {many}, {why}"})
        return
    await context.control.await_labels(
        f"waiting for {many}: rondo label {name}@{number}, then rondo resume {name} or the next scheduled run goes on; "
        "what is committed stays"
    )


async def _ask(
    context: RoundContext,
    config: HumanFeedbackConfig | HumanConfig,
    task: str,
    missing: Callable[[], int],
    deadline: datetime,
) -> str | None:
    """Waits in Prefect and returns how that ended; None if there is no server to wait in, so that the run must stop."""
    control = context.control
    if datetime.now(UTC) >= deadline:
        return "time"
    if not control.watched or control.flow_run is None:
        return None
    context.display.say(f"waiting in Prefect until {deadline:%Y-%m-%d %H:%M} UTC: {task}")
    await context.workers.dismiss()
    control.waits_for_people = True
    async with control.turn.without_gpus(context.display):
        with context.display.resting():
            outcome = await wait_in_prefect(
                control.flow_run, task, missing, deadline, has_judge=isinstance(config, HumanFeedbackConfig)
            )
    control.waits_for_people = False
    return outcome
