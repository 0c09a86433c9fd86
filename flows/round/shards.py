"""The shards of a batch of prompts: sampled, judged, and for training made into preferences.

In mode ``phased`` all of them are sampled before the first is judged. In mode ``streaming`` each is processed by
itself, a bounded number at a time. Whoever waits for shards gets them in the order of their indices: what is made of
them does not depend on which was done first.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flows.host.progress import Stage
from flows.round.context import RoundContext
from flows.round.shard_steps import build_preferences, judge_shard, sample_shard
from flows.round.step import step
from flows.workers.references import PreferenceShard, PromptBatch
from pipeline.data.prompts import round_slice
from pipeline.data.regression_set import PROMPT_SPLIT
from pipeline.evaluation.base_rate import first_preferences
from storage.log.manifest import Entry, FileRef
from storage.tables.shards import read_table

Result = TypeVar("Result")

AHEAD = 4
"""Shards in progress for each that the sampler, or the judge, takes at once: a slower judge holds the sampler up."""


@dataclass(frozen=True)
class Shard:
    """A shard that is done. One that was skipped has nothing but the reason; held-out ones end judged."""

    candidates: Entry
    judgments: Entry | None = None
    preferences: Entry | None = None


class ShardsFailedError(Exception):
    """Raised for those who wait for shards that will not come; the task that works on them raises the cause.

    It is not an error of the one who waits: to try again would change nothing.
    """


class Shards:
    """The shards of a batch by their indices, each as soon as it is done.

    Whoever waits for one that will not come gets a ShardsFailedError.

    Args:
        rows: of the prompts table, for each shard.
    """

    def __init__(self, rows: Sequence[list[int]]) -> None:
        self.rows = rows
        self._done: list[asyncio.Future[Shard]] = [asyncio.get_running_loop().create_future() for _ in rows]

    def __len__(self) -> int:
        return len(self._done)

    @property
    def done(self) -> bool:
        """Says whether all of them are done."""
        return all(future.done() for future in self._done)

    def put(self, index: int, shard: Shard) -> None:
        """Takes a shard that is done."""
        self._done[index].set_result(shard)

    def fail(self) -> None:
        """Says that no other shard will come: all that wait for one get a ShardsFailedError."""
        for future in self._done:
            if not future.done():
                future.set_exception(ShardsFailedError())
                future.exception()  # who does not wait for it does not miss it

    async def first(self, count: int) -> list[Shard]:
        """Returns the first ``count`` shards, once they are done."""
        return [await asyncio.shield(self._done[index]) for index in range(count)]

    async def all(self) -> list[Shard]:
        """Returns all shards, once they are done."""
        return await self.first(len(self))

    async def after(self, count: int) -> AsyncIterator[Shard]:
        """Yields the shards after the first ``count``, one by one, each once it is done."""
        for index in range(count, len(self)):
            yield await asyncio.shield(self._done[index])


@contextlib.asynccontextmanager
async def process_shards(
    context: RoundContext, number: int, batch: PromptBatch, after: Shards | None = None
) -> AsyncIterator[Shards]:
    """Works on the shards of a batch while the block runs; all are done when it ends.

    Args:
        after: others that must be done before these begin.
    """
    shards = Shards(_rows(context, number, batch))
    working = asyncio.create_task(_process(context, number, batch, shards, after))
    try:
        try:
            yield shards
        except ShardsFailedError:
            await working  # which raises why
            raise
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def judged(context: RoundContext, number: int, batch: PromptBatch) -> list[Shard]:
    """Samples and judges a batch of prompts."""
    async with process_shards(context, number, batch) as shards:
        return await shards.all()


async def _process(
    context: RoundContext, number: int, batch: PromptBatch, shards: Shards, after: Shards | None
) -> None:
    try:
        if after is not None:
            await after.all()
        await _process_shards(context, number, batch, shards)
        if number == 1 and not batch.held_out:
            _say_first_preferences(context, await shards.all())
    except BaseException:
        shards.fail()
        raise


@step("{context.name} r{number} shards, {batch.name}", retries=0)
async def _process_shards(context: RoundContext, number: int, batch: PromptBatch, shards: Shards) -> None:
    """Samples and judges a batch of prompts, shard by shard, and puts each of them into ``shards``."""
    rows, workers = shards.rows, context.workers
    total = sum(map(len, rows)) * (1 if batch.held_out else context.recipe.sampling.candidates)
    with (
        context.display.stage(number, f"{batch.label}judge", total, len(rows), "completions") as judging,
        context.display.stage(number, f"{batch.label}sample", total, len(rows), "completions") as sampling,
    ):
        ahead = asyncio.Semaphore(AHEAD * max(workers.sampler.carrier.capacity, workers.judge.carrier.capacity))

        async def sample(index: int) -> Entry:
            return await sample_shard(context, number, index, rows[index], batch, sampling)

        async def finish(index: int, candidates: Entry) -> None:
            shards.put(index, await _judge_and_prefer(context, number, index, candidates, batch, judging))

        async def stream(index: int) -> None:
            await finish(index, await sample(index))

        async def bounded(work: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
            async with ahead:
                return await work(*arguments)

        indices = range(len(rows))
        if context.recipe.mode == "streaming":
            await gather(bounded(stream, index) for index in indices)
        else:
            sampled = await gather(bounded(sample, index) for index in indices)
            await gather(bounded(finish, index, entry) for index, entry in zip(indices, sampled, strict=True))


def _say_first_preferences(context: RoundContext, shards: Iterable[Shard]) -> None:
    """Says, before the first update ends, how many prompts give a preference; entries of 0.1.0 do not know it."""
    metas = [shard.preferences.meta for shard in shards if shard.preferences is not None]
    prompts, preferring = (sum(meta.get(name, 0) for meta in metas) for name in ("prompts", "preferring"))
    if prompts:
        context.display.say(f"round 1: {first_preferences(preferring, prompts)}")


async def _judge_and_prefer(
    context: RoundContext, number: int, index: int, candidates: Entry, batch: PromptBatch, judging: Stage
) -> Shard:
    if not candidates.files:
        return Shard(candidates)
    judgments = await judge_shard(context, number, index, candidates, batch, judging)
    if batch.held_out:
        return Shard(candidates, judgments)
    return Shard(candidates, judgments, await build_preferences(context, number, index, candidates, judgments))


def prompt_rows(context: RoundContext, number: int, *, held_out: bool) -> list[list[int]]:
    """Returns the rows of the prompts table that a round samples, or those held out, cut into shards."""
    prompts = read_table(context.store, context.files(0, "prompts"), columns=["split"])
    sampling = context.recipe.sampling
    if held_out:
        rows = [row for row, split in enumerate(prompts["split"].to_pylist()) if split == "evaluation"]
    else:
        rows = round_slice(prompts, number, sampling.prompts_per_round, context.recipe.seed)
    return _cut(context, rows)


def _rows(context: RoundContext, number: int, batch: PromptBatch) -> list[list[int]]:
    """Returns the rows of a batch's prompts in their table, cut into shards."""
    if not batch.gate:
        return prompt_rows(context, number, held_out=batch.held_out)
    splits = read_table(context.store, batch.gate, columns=["split"])["split"].to_pylist()
    return _cut(context, [row for row, split in enumerate(splits) if split == PROMPT_SPLIT])


def _cut(context: RoundContext, rows: list[int]) -> list[list[int]]:
    size = context.recipe.sampling.shard_prompts
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def files_of(entries: Iterable[Entry | None]) -> tuple[FileRef, ...]:
    """Returns the files of these entries, in order."""
    return tuple(file for entry in entries if entry is not None for file in entry.files)


def preference_shards(shards: Iterable[Shard], whole: int, before: int = 0) -> list[PreferenceShard]:
    """Returns what the update reads of these shards; the round has ``whole``, of which ``before`` come before them."""
    return [
        PreferenceShard(shard.candidates.files, shard.preferences.files, (before + place + 1) / whole)
        for place, shard in enumerate(shards)
        if shard.preferences is not None
    ]


async def gather(parts: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Returns what all parts return; if one fails, the others are ended before its error is raised."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for running in tasks:
            running.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
