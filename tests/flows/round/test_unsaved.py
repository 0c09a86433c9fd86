"""A policy between its update and its commit: who waits for it, what is kept if something fails, and what is lost."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic_core import to_jsonable_python

from flows.errors import WorkerDiedError
from flows.remote.calls import Client
from flows.round import shard_steps
from flows.round.context import RoundContext
from flows.round.saved_meanwhile import retry_if_lost, saved_meanwhile
from flows.round.unsaved import PolicyLostError, UnsavedPolicy
from flows.workers.references import PolicyRef
from flows.workers.sampler import Sampled, SamplerWorker
from pipeline.errors import LostUpdateError, WeightSyncError
from storage.errors import StorageFullError
from storage.log.manifest import FileRef
from support.contexts import round_context

NAME, DIGEST = "unsaved 1", "d" * 64


def file(name: str) -> FileRef:
    return FileRef(f"runs/r/{name}", 1, "0" * 64, 1)


def trained(context: RoundContext, failure: Exception | None = None, begun: asyncio.Event | None = None) -> None:
    """An update of round 1 is done; its saving fails with this, or commits, or is held for ever once it has begun."""

    async def save() -> PolicyRef:
        await asyncio.sleep(0)
        if begun is not None:
            begun.set()
            await asyncio.sleep(3600)
        if failure is not None:
            raise failure
        context.commit(1, "probe", [file("probe")], None, DIGEST)
        context.commit(1, "checkpoint", [file("model.safetensors")], {"policy": DIGEST})
        return context.policies.committed(1)

    context.policies.keep_unsaved(UnsavedPolicy(1, PolicyRef(NAME, (), file("probe")), save))


def stages(context: RoundContext) -> list[str]:
    return [entry.key.stage for entry in context.run.entries(1) if entry.key is not None]


def test_a_policy_has_a_name_until_it_has_a_hash() -> None:
    """By both of them the sampler knows that it has it. Of another round nothing is known."""

    async def work(context: RoundContext) -> None:
        async with saved_meanwhile(context, 1):
            trained(context)
            policy = context.policies.after(1)
            assert (policy.digest, policy.saved, context.policies.digest(1)) == (NAME, False, NAME)
            assert stages(context) == []
            assert await context.policies.saved(1) == context.policies.after(1)
        assert context.policies.trained(2) is None

    with round_context() as context:
        asyncio.run(work(context))
        policy = context.policies.after(1)
        assert (policy.digest, policy.saved, policy.trained_as) == (DIGEST, True, NAME)
        assert context.policies.digest(1) == DIGEST


def test_what_is_to_be_committed_with_it_comes_first() -> None:
    """Also if it is known before the policy is saved; whoever waits for the policy comes after it."""

    async def work(context: RoundContext) -> None:
        async with saved_meanwhile(context, 1):
            trained(context)
            policy = context.policies.trained(1)
            assert policy is not None

            async def sample() -> None:
                await context.policies.saved(1)
                context.commit(1, "eval_candidates", [file("eval")])

            sampling = asyncio.create_task(sample())
            await asyncio.sleep(0)
            policy.once_saved(lambda saved: context.commit(1, "handover", [], inputs=saved.digest))
            assert stages(context) == []
            await sampling
            policy.once_saved(lambda saved: context.commit(1, "later", [], inputs=saved.digest))

    with round_context() as context:
        asyncio.run(work(context))
        assert stages(context) == ["probe", "checkpoint", "handover", "eval_candidates", "later"]


def test_an_update_is_kept_if_what_follows_it_fails() -> None:
    """As the sampler is found to compute otherwise: the update has been paid for, and the error is the sampler's."""

    async def work(context: RoundContext) -> None:
        async with saved_meanwhile(context, 1):
            trained(context)
            raise WeightSyncError("other weights")

    with round_context() as context:
        with pytest.raises(WeightSyncError, match="other weights"):
            asyncio.run(work(context))
        assert stages(context) == ["probe", "checkpoint"]


def test_that_it_could_not_be_saved_either_is_said() -> None:
    async def work(context: RoundContext) -> None:
        async with saved_meanwhile(context, 1):
            trained(context, StorageFullError("no room"))
            raise WeightSyncError("other weights")

    with round_context() as context:
        with pytest.raises(WeightSyncError) as raised:
            asyncio.run(work(context))
        assert raised.value.__notes__ == ["the policy of round 1 could not be saved either: no room"]


@pytest.mark.parametrize("waits", [True, False], ids=["who waits", "the round"])
def test_a_full_disk_is_said_in_its_own_words(waits: bool) -> None:
    async def work(context: RoundContext) -> None:
        async with saved_meanwhile(context, 1):
            trained(context, StorageFullError("no room"))
            if waits:
                await context.policies.saved(1)

    with round_context() as context:
        with pytest.raises(StorageFullError, match=r"^no room$") as raised:
            asyncio.run(work(context))
        assert not getattr(raised.value, "__notes__", [])
        assert stages(context) == []


def test_a_run_that_is_to_end_does_not_wait() -> None:
    """Ctrl-C ends the saving, and with it the trainer: its task is gone when the block is."""
    ended: list[bool] = []

    async def work(context: RoundContext, begun: asyncio.Event) -> None:
        async with saved_meanwhile(context, 1):
            trained(context, begun=begun)
            policy = context.policies.trained(1)
            assert policy is not None
            try:
                await policy.saved()
            finally:
                ended.append(policy.is_saved)

    async def interrupted(context: RoundContext) -> None:
        begun = asyncio.Event()
        working = asyncio.create_task(work(context, begun))
        await begun.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert len(asyncio.all_tasks()) == 1, "nothing goes on"

    with round_context() as context:
        asyncio.run(interrupted(context))
        assert ended == [False]
        assert stages(context) == []


@pytest.mark.parametrize("cause", [WorkerDiedError("killed"), LostUpdateError("another trainer")])
def test_a_policy_that_is_lost_is_trained_again_up_to_three_times(cause: Exception) -> None:
    said: list[str] = []

    async def work(context: RoundContext, failures: list[Exception | None]) -> str:
        async def once() -> str:
            async with saved_meanwhile(context, 1):
                assert context.policies.trained(1) is None, "nothing is left of the try before"
                trained(context, failures.pop(0))
                await context.policies.saved(1)
                return "done"

        return await retry_if_lost(context, 1, once)

    with round_context(display=SimpleNamespace(say=said.append)) as context:
        with pytest.raises(type(cause)) as raised:
            asyncio.run(work(context, [cause] * 4))
        assert raised.value is cause
        assert len(said) == 2
        assert all(
            f"the trainer was lost with an unsaved policy: the update is done again ({cause})" in sentence
            for sentence in said
        )
        assert asyncio.run(work(context, [cause, None])) == "done"
        assert stages(context) == ["probe", "checkpoint"]


def test_a_full_disk_is_no_reason_to_train_again() -> None:
    tries: list[Any] = []

    async def work(context: RoundContext) -> None:
        async def once() -> None:
            async with saved_meanwhile(context, 1):
                tries.append(trained(context, StorageFullError("no room")))

        await retry_if_lost(context, 1, once)

    with round_context() as context, pytest.raises(StorageFullError):
        asyncio.run(work(context))
    assert len(tries) == 1


def test_who_waits_for_a_lost_policy_does_not_try_again() -> None:
    from flows.round.step import is_worth_another_try

    assert is_worth_another_try(WorkerDiedError("killed"))
    assert not is_worth_another_try(PolicyLostError(WorkerDiedError("killed")))


def test_what_waits_for_the_hash_is_there_until_the_sampler_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that dies over it is asked again, and must find it."""
    monkeypatch.setattr(shard_steps, "PAUSE_SECONDS", 0.0)
    waiting, seen = tmp_path / "unnamed", list[bool]()
    waiting.touch()

    class Dying:
        capacity = 1

        async def call(self, _method: str, **_arguments: Any) -> Any:
            seen.append(waiting.exists())
            if len(seen) == 1:
                raise WorkerDiedError("gone")
            return to_jsonable_python(file("eval_candidates"))

    policy, sampled = PolicyRef(DIGEST, (file("model"),), file("probe")), Sampled(None, 1, 1, str(waiting))
    context = cast(Any, SimpleNamespace(workers=SimpleNamespace(sampler=Client[SamplerWorker](cast(Any, Dying())))))
    named = asyncio.run(shard_steps._named(context, 1, "eval_candidates", 0, policy, sampled))
    assert (named, seen, waiting.exists()) == (file("eval_candidates"), [True, True], False)
