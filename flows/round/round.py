"""A round, from top to bottom.

    shards    K completions for each prompt from the policy of the round before, judged, and made into chosen/rejected
              pairs or rankings, or reasons why not: shard by shard, each as soon as it can be
    people    may decide in the judge's place, and preferences of earlier rounds may be replayed beside these
    update    DPO on them, with the policy that sampled as the reference
    sync      the new weights to the sampler, in place, and check that it computes with them; the trainer saves them as
              the round's checkpoint meanwhile, before which nothing that names the new policy is committed
    evaluate  the new policy on held-out prompts
    gate      compares it with the best round so far, if the recipe asks for it; where it fails, the next round starts
              from the last policy that passed
    finish    the round becomes visible as a whole

In mode ``phased`` these follow each other; in mode ``streaming`` the update takes shards while later ones are sampled.
Each step looks into the run's log first and does nothing that is there already: to resume is to run again.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from flows.registry.round_summary import RoundSummary
from flows.round import human_feedback, round_steps
from flows.round.context import RoundContext
from flows.round.finish import finish_round
from flows.round.gate import pass_gate
from flows.round.saved_meanwhile import retry_if_lost, saved_meanwhile
from flows.round.shards import Shards, files_of, judged, process_shards
from flows.round.update_step import update
from flows.round.weight_sync import sync_weights
from flows.workers.references import PromptBatch
from pipeline.judges.human import HumanConfig
from storage.log.manifest import Entry


async def run_round(context: RoundContext, number: int) -> RoundSummary:
    """Runs one round of iterative DPO; round 0 only evaluates the initial policy."""
    evaluation = await retry_if_lost(context, number, lambda: new_policy(context, number))
    gate = await pass_gate(context, number)
    return await finish_round(context, number, evaluation, gate)


async def new_policy(context: RoundContext, number: int) -> dict[str, Any]:
    """Makes the round's policy and evaluates it; it is saved while the sampler works with it already."""
    async with saved_meanwhile(context, number):
        if number > 0:
            await train(context, number)
        await sync_weights(context, number)
        return await evaluate(context, number)


async def train(context: RoundContext, number: int) -> None:
    """Samples and judges completions, and updates the policy with them."""
    await ask_people(context, number)
    async with process_shards(context, number, training(context, number)) as shards:
        by_people, replayed = await human_preferences(context, number, shards)
        await round_steps.sleep_sampler(context, shards)
        async with prefetch(context, number + 1, shards) as ahead:
            await update(context, number, shards, by_people, replayed)
            trained = context.policies.trained(number)
            if trained is not None and ahead is not None and not ahead.done:
                trained.begin_saving()  # the sampler does not take it yet


def training(context: RoundContext, number: int) -> PromptBatch:
    """Returns a round's own prompts."""
    return PromptBatch.training(number, context.policies.sampled_by(number))


async def ask_people(context: RoundContext, number: int) -> None:
    """Samples what people are asked about, if they are the judge, and waits; their answers then judge the round."""
    if isinstance(context.recipe.judge, HumanConfig):
        await judged(context, number, training(context, number))
        await human_feedback.wait_for_judges(context, number)


async def human_preferences(context: RoundContext, number: int, shards: Shards) -> tuple[Entry | None, Entry | None]:
    """Returns the entries that need all preferences of a round: people's in the judge's place, and the replayed ones.

    Each is None if the recipe does not ask for it.
    """
    recipe = context.recipe
    if not (recipe.people or recipe.preferences.replay.share):
        return None, None
    done = await shards.all()
    by_people = await human_feedback.override(context, number, done)
    own = [by_people] if by_people else [shard.preferences for shard in done]
    return by_people, await round_steps.replay(context, number, files_of(own))


@contextlib.asynccontextmanager
async def prefetch(context: RoundContext, number: int, own: Shards) -> AsyncIterator[Shards | None]:
    """Samples the next round's completions, with staleness 1, while the block runs, with the policy that is there.

    They wait for the round's ``own`` shards, as the engine holds one policy at a time. The policy of these may be
    another one: it is in the first round, and in one that a run or a fork goes on with.
    """
    if not context.recipe.staleness or number > context.goal:
        yield None
        return
    async with process_shards(context, number, training(context, number), after=own) as ahead:
        yield ahead


async def evaluate(context: RoundContext, number: int) -> dict[str, Any]:
    """Measures held-out reward, win rates against the previous round and round 0, and KL to both of their policies.

    If the recipe says how one would serve, the reward of answers that are sampled like that stands beside it.

    The previous round is the one that this one started from. A round without an update has its completions and
    judgments.
    """
    start = context.policies.start(number)
    if number and context.policies.digest(number) == context.policies.digest(start):
        round_steps.adopt_evaluation(context, number)
    own = await judged(context, number, PromptBatch.evaluation(number))
    serving = context.recipe.evaluation.serving
    served = [] if serving is None else await judged(context, number, PromptBatch.as_served(number))
    if number == 0:
        return await round_steps.compare(context, number, own, served)
    previous = await judged(context, number, PromptBatch.baseline(number, start))
    initial = await judged(context, number, PromptBatch.baseline(number, 0))
    logps = await round_steps.score(context, number, [shard.candidates for shard in own])
    probe = await round_steps.probe_judges(context, number)
    return await round_steps.compare(context, number, own, served, previous, initial, [logps], probe)
