"""A policy that an update has made and nobody has saved yet: the trainer writes it while the sampler works with it.

The sampler has its weights out of the trainer's memory. So neither sampling nor anything before it waits for the files,
their hash, or the disk. But nothing that names the policy is committed before its checkpoint is: who has something to
commit waits in `UnsavedPolicy.saved`. So the log is the one that it would be if the checkpoint came first, and a run
that is killed in between has, as ever, not been updated.

If the trainer dies before the policy is saved, the policy is lost, and what was sampled from it with it: these would be
answers of weights that nobody has. The update is done again, from its newest saved state if there is one.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from flows.round.step import is_worth_another_try
from flows.workers.references import PolicyRef


class PolicyLostError(Exception):
    """Raised for those who wait for a policy that will not be saved: the trainer that had it is gone.

    It is no error of the one who waits: only the update can be done again.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class UnsavedPolicy:
    """The policy of an update that is done, until it is saved and afterwards.

    Args:
        round: whose update it is.
        policy: its name for the time being, and its probe.
        save: has the trainer write it, and commits it; its answer is the policy with files and hash.
    """

    def __init__(self, round: int, policy: PolicyRef, save: Callable[[], Coroutine[Any, Any, PolicyRef]]) -> None:
        self.round, self.unsaved = round, policy
        self._save = save
        self._saving: asyncio.Task[PolicyRef] | None = None
        self._then: list[Callable[[PolicyRef], object]] = []

    @property
    def is_saving(self) -> bool:
        """Says whether the trainer has begun to write it, and may be done."""
        return self._saving is not None

    @property
    def is_saved(self) -> bool:
        """Says whether its checkpoint is committed."""
        saving = self._saving
        return saving is not None and saving.done() and not saving.cancelled() and saving.exception() is None

    def begin_saving(self) -> None:
        """Has the trainer begin to write it, which takes the trainer until it is done."""
        if self._saving is None:
            self._saving = asyncio.create_task(self._saved())

    async def saved(self) -> PolicyRef:
        """Returns the policy once its checkpoint is committed.

        Raises:
            PolicyLostError: the trainer that had it is gone.
            StoreError, RondoError: it cannot be written.
        """
        self.begin_saving()
        assert self._saving is not None
        return await asyncio.shield(self._saving)

    def once_saved(self, commit: Callable[[PolicyRef], object]) -> None:
        """Has this committed right after the checkpoint, before anything that waits for it."""
        if self.is_saved:
            assert self._saving is not None
            commit(self._saving.result())
        else:
            self._then.append(commit)

    async def abandon(self) -> None:
        """Ends the saving if it is still going on, and with it the trainer, as when the run is to end."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)

    async def _saved(self) -> PolicyRef:
        try:
            policy = await self._save()
        except Exception as error:
            if is_worth_another_try(error):
                raise PolicyLostError(error) from error
            raise
        for commit in self._then:
            commit(policy)
        return policy
