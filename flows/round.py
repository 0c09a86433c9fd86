"""A round, from top to bottom.

    sample    K candidates for each prompt, shard by shard, from the policy of the round before
    judge     each shard as soon as it is there
    prefer    judgments become chosen/rejected pairs or rankings, or reasons why not; people may decide
    replay    preferences of earlier rounds beside these, where the recipe says so
    update    DPO on them, with the policy that sampled as the reference: a new checkpoint
    hand over the new weights to the sampler, in place, and check that it computes with them
    evaluate  the new policy on held-out prompts
    finish    the round becomes visible as a whole

Each step looks into the run's log first and does nothing that is there already: to resume is to run again.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from prefect import flow

from flows import people, stages
from flows.finish import finish_round
from flows.references import Batch
from flows.session import current
from flows.summary import RoundSummary
from storage.manifest import Entry

Result = TypeVar("Result")


@flow(name="round", flow_run_name="{run} round {number}")
async def run_round(run: str, number: int) -> RoundSummary:
    """One round of online DPO; round 0 only evaluates the initial policy."""
    if number > 0:
        candidates, judgments = await sample_and_judge(run, number, Batch.training(number))
        await people.wait_for_judges(run, number)
        preferences = await stages.prefer(run, number, candidates, judgments)
        preferences = await people.override(run, number, candidates, judgments, preferences)
        replayed = await stages.replay(run, number, preferences)
        await stages.update(run, number, candidates, preferences, replayed)
    await stages.hand_over(run, number)
    evaluation = await evaluate(run, number)
    return await finish_round(run, number, evaluation)


async def sample_and_judge(run: str, number: int, batch: Batch) -> tuple[list[Entry], list[Entry]]:
    """Samples and judges a batch of prompts, shard by shard; each is judged while later ones are sampled."""
    session = current()
    shards = session.shards(number, held_out=batch.held_out)
    total = sum(map(len, shards)) * (1 if batch.held_out else session.recipe.sampling.candidates)
    label = "held-out " if batch.held_out else ""
    with (
        session.display.stage(number, f"{label}judge", total, len(shards)) as judging,
        session.display.stage(number, f"{label}sample", total, len(shards)) as sampling,
    ):

        async def one(shard: int, rows: list[int]) -> tuple[Entry, Entry]:
            sampled = await stages.sample_shard(run, number, shard, rows, batch, sampling)
            return sampled, await stages.judge_shard(run, number, shard, sampled, batch, judging)

        done = await _all(one(shard, rows) for shard, rows in enumerate(shards))
    return [sampled for sampled, _ in done], [judged for _, judged in done]


async def evaluate(run: str, number: int) -> dict[str, Any]:
    """Held-out reward, win rates against the previous round and round 0, and KL to both of their policies."""
    candidates, judgments = await sample_and_judge(run, number, Batch.evaluation(number))
    if number == 0:
        return await stages.compare(run, number, candidates, judgments)
    _, previous = await sample_and_judge(run, number, Batch.baseline(number, number - 1))
    _, initial = await sample_and_judge(run, number, Batch.baseline(number, 0))
    logps = await stages.score(run, number, candidates)
    probe = await stages.probe_judges(run, number)
    return await stages.compare(run, number, candidates, judgments, previous, initial, [logps], probe)


async def _all(parts: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all parts return; where one fails, the others are ended first."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for running in tasks:
            running.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
