"""A step of a round as a Prefect task. Prefect shows and retries it; the log alone says whether it is done."""

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows.errors import WorkerDiedError
from pipeline.errors import EngineError, LostUpdateError, WeightSyncError

P = ParamSpec("P")
Result = TypeVar("Result")
Step = Callable[P, Coroutine[Any, Any, Result]]

TRIES = 3
"""How often what a worker died of is done in all."""


def is_worth_another_try(error: object) -> bool:
    """Says whether a worker, an engine or an update was lost: that may pass, a wrong input does not.

    Nor does an engine that computes otherwise than the trainer.
    """
    lost = isinstance(error, WorkerDiedError | EngineError | LostUpdateError)
    return lost and not isinstance(error, WeightSyncError)


def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return is_worth_another_try(state.data)


def step(name: str, *, retries: int = TRIES - 1) -> Callable[[Step[P, Result]], Step[P, Result]]:
    """Makes a Prefect task of this run name: never cached, as the log decides; tried again if a worker died."""
    made: Callable[[Step[P, Result]], Step[P, Result]] = task(
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=1,
        retry_condition_fn=_may_pass,
    )
    return made
