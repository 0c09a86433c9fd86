"""Shards on their way, and who waits for them: what is known before any of them is sampled for real."""

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.host.work_spans import busy_seconds, shared_seconds
from flows.remote.calls import Client
from flows.round import round_steps, shards
from flows.round.context import RoundContext
from flows.round.shard_steps import retry_on_worker_death
from flows.round.shards import Shard, Shards, ShardsFailedError, process_shards
from flows.round.update_state import commit_state, drop_states, interrupted_update
from flows.round.update_step import update
from flows.round.weight_sync import sync_weights
from flows.workers.judge import JudgeWorker
from flows.workers.references import PromptBatch
from flows.workers.sampler import SamplerWorker
from pipeline.errors import EngineError, WeightSyncError
from pipeline.records import content_id
from storage.log.manifest import Entry, FileRef, Key
from storage.log.store import Store
from support.contexts import round_context

BATCH = PromptBatch.training(1, 0)
THROUGH = Shard(Entry(1, "commit", "s", Key(1, "candidates", 0), (), {}, "", ""))


@pytest.fixture
def rounds() -> Iterator[RoundContext]:
    """A run whose rounds have three shards."""
    with round_context(["sampling.prompts_per_round=3", "sampling.shard_prompts=1"], prompts=9) as context:
        yield context


@pytest.fixture
def three_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is begun of rounds of three shards. Those of round 2 fail after the first."""
    begun: list[str] = []

    async def _process_shards(context: RoundContext, number: int, batch: PromptBatch, found: Shards) -> None:
        assert len(found) == 3
        begun.append(f"{context.name} {number}")
        await asyncio.sleep(0.01)
        found.put(0, THROUGH)
        if number == 2:
            raise EngineError("too many would be skipped")
        found.put(1, THROUGH)
        found.put(2, THROUGH)
        begun.append(f"{context.name} {number} through")

    monkeypatch.setattr(shards, "_process_shards", _process_shards)
    return begun


def test_who_waits_for_shards_that_fail_does_not_try_again(rounds: RoundContext, three_shards: list[str]) -> None:
    """The update is a step that is tried again where an engine died. Here it would be, in vain, from the beginning."""
    waited: list[BaseException] = []

    async def work() -> None:
        async with process_shards(rounds, 2, BATCH) as found, process_shards(rounds, 3, BATCH, after=found):
            assert await found.first(1) == [THROUGH]
            try:
                await found.all()
            except ShardsFailedError as error:
                waited.append(error)
                raise

    with pytest.raises(EngineError, match="too many would be skipped"):
        asyncio.run(work())
    assert waited
    assert three_shards == ["r 2"], "what waits for them does not begin"
    again = update.retry_condition_fn
    states = [SimpleNamespace(data=error) for error in (waited[0], EngineError("died"))]
    assert [again(None, None, state) for state in states] == [False, True]  # type: ignore[misc]


def test_weights_that_differ_end_the_run_at_once() -> None:
    """A new engine would compute as the one before: neither the shard nor the step is tried again."""
    tried: list[bool] = []

    async def sample(again: bool) -> None:
        tried.append(again)
        raise WeightSyncError("other weights")

    with pytest.raises(WeightSyncError, match="other weights"):
        asyncio.run(retry_on_worker_death(sample))
    assert tried == [False]
    for step in (sync_weights, update):
        again = step.retry_condition_fn  # type: ignore[attr-defined]
        assert not again(None, None, SimpleNamespace(data=WeightSyncError("other weights")))


@pytest.mark.parametrize("mode", ["streaming", "phased"])
def test_what_is_sampled_ahead_of_a_slower_judge_is_bounded(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Two shards fit into the sampler, so eight may be on their way. In phases the judge waits for the last of all."""
    did: list[tuple[str, int]] = []
    most = 0

    async def sample(_context: RoundContext, _number: int, index: int, *_rest: Any) -> Entry:
        nonlocal most
        did.append(("sample", index))
        judged = sum(what == "judge" for what, _ in did)
        most = max(most, sum(what == "sample" for what, _ in did) - judged)
        await asyncio.sleep(0)
        files = (FileRef("runs/r/some.parquet", 1, "0" * 64, 1),) if index < 19 else ()  # the last one is set aside
        return Entry(1, "commit", "s", Key(1, "candidates", index), files, {}, "", "")

    async def judge(_context: RoundContext, _number: int, index: int, candidates: Entry, *_rest: Any) -> Entry:
        await asyncio.sleep(0.005)
        did.append(("judge", index))
        return candidates

    async def prefer(_context: RoundContext, _number: int, _index: int, candidates: Entry, _judgments: Entry) -> Entry:
        return candidates

    shown: list[tuple[str, int, int]] = []

    def stage(_number: int, name: str, total: int, parts: int, _unit: str) -> contextlib.nullcontext[None]:
        shown.append((name, total, parts))
        return contextlib.nullcontext()

    workers = SimpleNamespace(
        sampler=Client[SamplerWorker](cast(Any, SimpleNamespace(capacity=2))),
        judge=Client[JudgeWorker](cast(Any, SimpleNamespace(capacity=1))),
    )
    for name, work in (("sample_shard", sample), ("judge_shard", judge), ("build_preferences", prefer)):
        monkeypatch.setattr(shards, name, work)

    async def through(batch: PromptBatch) -> list[Shard]:
        found = Shards([[2 * index, 2 * index + 1] for index in range(20)])
        changes = [f"mode={mode}", "sampling.candidates=4"]
        with round_context(changes, workers=workers, display=SimpleNamespace(stage=stage)) as context:
            await shards._process_shards.fn(context, 1, batch, found)
        return await found.all()

    trained = asyncio.run(through(BATCH))
    assert [shard.candidates.key.shard for shard in trained if shard.candidates.key] == list(range(20))
    assert [index for index, shard in enumerate(trained) if shard.judgments is None] == [19]
    assert [index for index, shard in enumerate(trained) if shard.preferences is None] == [19]
    assert sorted(index for what, index in did if what == "judge") == list(range(19))
    if mode == "streaming":
        assert most == 8
    else:
        assert [what for what, _ in did] == ["sample"] * 20 + ["judge"] * 19
    answered = asyncio.run(through(PromptBatch.evaluation(1)))
    assert {shard.preferences for shard in answered} == {None}
    assert [total for name, total, _ in shown] == [20 * 2 * 4] * 2 + [20 * 2] * 2


def test_who_fails_ends_the_others_first() -> None:
    """What is begun after a failure, another try or another round, meets nobody who is still at work."""
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(name)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise EngineError("died")

    async def gathered() -> None:
        with pytest.raises(EngineError, match="died"):
            await shards.gather([work("a"), fail(), work("b")])
        assert sorted(ended) == ["a", "b"]

    asyncio.run(gathered())


def test_who_leaves_early_ends_the_work(rounds: RoundContext, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    async def _process_shards(*_arguments: object) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    monkeypatch.setattr(shards, "_process_shards", _process_shards)

    async def leave() -> None:
        async with process_shards(rounds, 1, BATCH):
            await asyncio.sleep(0)
            raise EngineError("elsewhere")

    async def work() -> None:
        with pytest.raises(EngineError, match="elsewhere"):
            await leave()
        assert ended

    asyncio.run(work())


def test_shards_of_the_next_round_begin_after_all_of_this_one(rounds: RoundContext, three_shards: list[str]) -> None:
    async def work() -> None:
        async with process_shards(rounds, 1, BATCH) as found, process_shards(rounds, 3, BATCH, after=found):
            pass

    asyncio.run(work())
    assert three_shards == ["r 1", "r 1 through", "r 3", "r 3 through"]


def test_the_sampler_sleeps_once_all_shards_are_done() -> None:
    asked: list[str] = []

    async def call(method: str, *, keeps_weights: bool, **_how: Any) -> None:
        asked.append(method)
        assert not keeps_weights, "the update makes others"
        if len(asked) == 1:
            raise EngineError("the engine fails to sleep")  # then another one is begun, which holds no memory

    workers = SimpleNamespace(sampler=Client[SamplerWorker](cast(Any, SimpleNamespace(call=call))))
    on_one_gpu = ["sampling.engine=vllm", "devices.sampler=cuda", "devices.trainer=cuda"]

    async def work(context: RoundContext) -> None:
        found = Shards([[0], [1]])
        resting = asyncio.create_task(round_steps.sleep_sampler(context, found))
        found.put(0, THROUGH)
        await asyncio.wait({resting}, timeout=0.05)
        assert not asked
        found.put(1, THROUGH)
        await resting

    with round_context(on_one_gpu, workers=workers) as context:
        asyncio.run(work(context))
    assert asked == ["sleep", "sleep"]


def test_the_state_of_an_update_belongs_to_what_it_was_given() -> None:
    """People change their minds between two interruptions, and change them back: no state is lost or taken for another.

    A state that was given up is never come back to.
    """
    store = Store.open("memory://")
    run = store.create_run("r", {})
    with run.writer() as writer:

        def save(step: int, preferences: str) -> None:
            path = store_file(store, f"{preferences} {step} {len(run.entries())}")
            commit_state(run, writer, 1, "inputs", step, [path], {"shards": 3, "preferences": preferences})

        def newest() -> tuple[Any, Any]:
            entry = interrupted_update(run, 1, "inputs")
            assert entry is not None
            assert entry.key is not None
            run.check_kept(entry.files)
            return entry.meta["preferences"], entry.key.shard

        for step, preferences in [(1, "a"), (2, "a"), (1, "b"), (2, "a"), (3, "a"), (1, "b"), (2, "b")]:
            save(step, preferences)
            if (step, preferences) == (1, "b") and len(run.entries()) == 3:
                assert newest() == ("b", 1)
        assert newest() == ("b", 2)
        assert interrupted_update(run, 1, "others") is None


def test_the_state_that_an_earlier_version_saved_is_left_alone() -> None:
    """Its steps are taken again: a state in another form could not be continued, now or ever."""
    store = Store.open("memory://")
    run = store.create_run("r", {})
    given = {"shards": 3, "preferences": "a"}
    with run.writer() as writer:
        key = Key(1, "update_state", 2, content_id(["inputs", given]))
        old = writer.commit(key, [store_file(store, "old")], {"of": "inputs", **given})
        assert interrupted_update(run, 1, "inputs") is None
        commit_state(run, writer, 1, "inputs", 2, [store_file(store, "new")], given)
        found = interrupted_update(run, 1, "inputs")
        assert found is not None
        assert found.files != old.files
        drop_states(run, writer, 1)
        assert {*run.dropped} == {file.path for file in (*old.files, *found.files)}


def test_what_rounds_are_compared_with_is_found_again_as_it_is() -> None:
    """A fork with another judge judges round 1 and round 0 anew: when it goes on, neither is in the other's way."""
    batches = {"before": PromptBatch.baseline(2, 1), "initial": PromptBatch.baseline(2, 0)}
    assert PromptBatch.baseline(1, 0).places == ((0, "eval_"), (1, "baseline_")), "in round 1 they are one"
    with round_context() as context:
        store, run = context.store, context.run
        for again in range(3):
            for inputs, batch in batches.items():
                done, stage = context.find_in(batch.places, "judgments", inputs, 0)
                assert (done is not None) == (again > 0)
                done = done or context.commit(2, stage, [store_file(store, inputs)], {}, inputs, 0)
                assert context.files(2, stage) == done.files
        assert len(run.entries(2)) == 2


def store_file(store: Store, text: str) -> Any:
    from storage.tables.checkpoints import stage_directory

    with stage_directory(store, "r", 1, "update_state") as staged:
        (staged.path / "progress.json").write_text(text)
    (file,) = staged.files
    return file


def test_time_that_is_shared_is_counted_once_and_quickly() -> None:
    updated = [(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (6.0, 7.0)]
    sampled = [(2.5, 5.5), (2.0, 2.75), (6.5, 9.0)]
    assert busy_seconds(updated) == 5.0
    assert shared_seconds(updated, sampled) == shared_seconds(sampled, updated) == 2.0
    assert shared_seconds(updated, []) == 0.0
    # A round of a million prompts has thousands of each.
    many = [(float(start), start + 0.5) for start in range(100_000)]
    assert shared_seconds(many, [(start + 0.25, end + 0.25) for start, end in many]) == pytest.approx(25_000)
