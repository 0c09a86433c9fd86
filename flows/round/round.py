"""A round, from top to bottom.

    shards    K candidates for each prompt from the policy of the round before, judged, and made into chosen/rejected
              pairs or rankings, or reasons why not: shard by shard, each as soon as it can be
    people    may decide in the judge's place, and preferences of earlier rounds may be replayed beside these
    update    DPO on them, with the policy that sampled as the reference: a new checkpoint
    hand over the new weights to the sampler, in place, and check that it computes with them
    evaluate  the new policy on held-out prompts
    finish    the round becomes visible as a whole

In mode ``phased`` these follow each other; in mode ``streaming`` the update takes shards while later ones are sampled.
Each step looks into the run's log first and does nothing that is there already: to resume is to run again.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from prefect import flow

from flows.registry.round_summary import RoundSummary
from flows.round import human_feedback, round_steps
from flows.round.context import current
from flows.round.finish import finish_round
from flows.round.shards import Shard, Shards, files_of, process_shards
from flows.round.update_step import update
from flows.workers.references import PromptBatch
from pipeline.config import PeopleJudge
from storage.log.manifest import Entry


@flow(name="round", flow_run_name="{run} round {number}")
async def run_round(run: str, number: int) -> RoundSummary:
    """One round of online DPO; round 0 only evaluates the initial policy."""
    current().control.listen()
    if number > 0:
        await ask_people(run, number)
        async with process_shards(run, number, training(number)) as shards:
            decided, replayed = await human_preferences(run, number, shards)
            await round_steps.sleep_sampler(shards)
            async with prefetch(run, number + 1, shards):
                await update(run, number, shards, decided, replayed)
    await round_steps.sync_weights(run, number)
    evaluation = await evaluate(run, number)
    return await finish_round(run, number, evaluation)


def training(number: int) -> PromptBatch:
    """A round's own prompts."""
    return PromptBatch.training(number, current().sampled_by(number))


async def ask_people(run: str, number: int) -> None:
    """Where people are the judge: samples what they are asked about, and waits; the round then is judged by that."""
    if isinstance(current().recipe.judge, PeopleJudge):
        await judged(run, number, training(number))
        await human_feedback.wait_for_judges(run, number)


async def human_preferences(run: str, number: int, shards: Shards) -> tuple[Entry | None, Entry | None]:
    """What needs all preferences of a round: people who decide in the judge's place, and what is replayed beside."""
    recipe = current().recipe
    if not (recipe.people or recipe.preferences.replay.share):
        return None, None
    through = await shards.all()
    decided = await human_feedback.override(run, number, through)
    own = [decided] if decided else [shard.preferences for shard in through]
    return decided, await round_steps.replay(run, number, files_of(own))


@contextlib.asynccontextmanager
async def prefetch(run: str, number: int, own: Shards) -> AsyncIterator[None]:
    """With staleness 1: while the block runs, the next round's candidates are sampled with the policy that is there.

    They wait for the round's ``own`` shards, where these have not been sampled ahead themselves: as in the first round,
    in one that a run or a fork goes on with. Those may be of another policy, and the engine holds one at a time.
    """
    session = current()
    if not session.recipe.staleness or number > session.rounds:
        yield
        return
    async with process_shards(run, number, training(number), after=own):
        yield


async def judged(run: str, number: int, batch: PromptBatch) -> list[Shard]:
    """A batch of prompts, sampled and judged."""
    async with process_shards(run, number, batch) as shards:
        return await shards.all()


async def evaluate(run: str, number: int) -> dict[str, Any]:
    """Held-out reward, win rates against the previous round and round 0, and KL to both of their policies."""
    own = await judged(run, number, PromptBatch.evaluation(number))
    if number == 0:
        return await round_steps.compare(run, number, own)
    previous = await judged(run, number, PromptBatch.baseline(number, number - 1))
    initial = await judged(run, number, PromptBatch.baseline(number, 0))
    logps = await round_steps.score(run, number, [shard.candidates for shard in own])
    probe = await round_steps.probe_judges(run, number)
    return await round_steps.compare(run, number, own, previous, initial, [logps], probe)
