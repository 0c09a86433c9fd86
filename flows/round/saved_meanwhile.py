"""A round goes on while its policy is saved, and ends with it saved, whatever happens; see `flows.round.unsaved`."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from flows.round.context import RoundContext
from flows.round.step import TRIES
from flows.round.unsaved import PolicyLostError

Result = TypeVar("Result")


@contextlib.asynccontextmanager
async def saved_meanwhile(context: RoundContext, number: int) -> AsyncIterator[None]:
    """Sees to it that the policy which a round's update makes in the block is saved at its end.

    So it is if the block fails: an update has been paid for. If the run is to end, a saving that goes on ends with it.
    """
    context.policies.forget_unsaved(number)
    try:
        try:
            yield
        except Exception as error:
            try:
                await _save(context, number)
            except Exception as another:
                if another is not error:
                    error.add_note(f"the policy of round {number} could not be saved either: {another}")
            raise
        await _save(context, number)
    finally:
        if (trained := context.policies.trained(number)) is not None:
            await trained.abandon()


async def retry_if_lost(context: RoundContext, number: int, work: Callable[[], Awaitable[Result]]) -> Result:
    """Returns what the work returns; if its policy is lost before it is saved, all is done again, up to three times.

    What is in the log is found there, so that this is no more than the update, and what follows from it.

    Raises:
        WorkerDiedError, EngineError, LostUpdateError: what the policy was lost by, the last time.
    """
    for attempt in range(TRIES):
        try:
            return await work()
        except PolicyLostError as lost:
            if attempt + 1 == TRIES:
                raise lost.cause from None
            context.display.say(
                f"round {number}: the trainer was lost with an unsaved policy: the update is done again ({lost})"
            )
    raise AssertionError("there is a first try")


async def _save(context: RoundContext, number: int) -> None:
    if (trained := context.policies.trained(number)) is not None:
        await trained.saved()
