"""The sampler gets a round's weights: from the trainer's memory if both are on this machine, else from the checkpoint.

What is sent are the weights that the checkpoint was written from, as the sampler would read them from it, to the bit.
The checkpoint is what a sampler that is started anew reads, and one whose trainer holds other weights by now.
"""

import asyncio
from dataclasses import asdict

from flows.remote.calls import Answer
from flows.round.context import RoundContext
from flows.round.step import step
from flows.workers.references import Drift, PolicyRef
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from storage.log.manifest import Entry


@step("{context.name} r{number} sync weights")
async def sync_weights(context: RoundContext, number: int) -> Entry:
    """Gives the sampler the round's weights, in place, and keeps how far it then is from the trainer."""
    policy = context.policies.after(number)
    done = context.find(number, "handover", policy.digest)
    if done is None:
        with context.display.stage(number, "sync weights") as stage:
            stage.report({"doing": "out of the trainer's memory"})
            answer = await send_weights(context, policy)
            if answer is None:
                stage.report({"doing": "from the checkpoint"})
                answer = await context.workers.sampler.call(SamplerWorker.use, policy=policy)
        done = context.commit(number, "handover", [], {**asdict(answer.result), **answer.work}, policy.digest)
    return done


async def send_weights(context: RoundContext, policy: PolicyRef) -> Answer[Drift] | None:
    """Sends the weights from the trainer's memory to the sampler; None, and nothing is changed, if that cannot be.

    While the sampler takes a piece, the trainer makes the next one.
    """
    sampler, trainer = context.workers.sampler, context.workers.trainer
    if not context.workers.share_memory:
        return None
    wanted = (await sampler.call(SamplerWorker.wanted_weights, policy=policy)).result
    if wanted is None:
        return None
    count = (await trainer.call(TrainerWorker.begin_sending, policy=policy, wanted=wanted)).result
    if not count:
        return None
    piece = await trainer.call(TrainerWorker.send_weights, number=0)
    for number in range(1, count):
        piece, _ = await asyncio.gather(
            trainer.call(TrainerWorker.send_weights, number=number),
            sampler.call(SamplerWorker.take_weights, piece=piece.result),
        )
    await sampler.call(SamplerWorker.take_weights, piece=piece.result)
    _, answer = await asyncio.gather(
        trainer.call(TrainerWorker.end_sending), sampler.call(SamplerWorker.finish_weights, policy=policy)
    )
    return answer
