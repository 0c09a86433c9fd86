"""The sampler gets a round's weights: from the trainer's memory if both are on this machine, else from the checkpoint.

What is sent are the weights that the checkpoint is written from, as the sampler would read them from it, to the bit.
They are written when the trainer has sent them, while the sampler goes on. The checkpoint is what a sampler that is
started anew reads, and one whose trainer holds other weights by now.
"""

import asyncio
from dataclasses import asdict
from typing import Any

from flows.errors import WorkerDiedError
from flows.remote.calls import Answer
from flows.round.context import RoundContext
from flows.round.step import step
from flows.workers.references import Drift, PolicyRef
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.errors import EngineError, LostUpdateError
from pipeline.model.weight_pieces import WeightPiece


@step("{context.name} r{number} sync weights")
async def sync_weights(context: RoundContext, number: int) -> None:
    """Gives the sampler the round's weights, in place, and keeps how far it then is from the trainer."""
    trained = context.policies.trained(number)
    begun = trained is not None and trained.is_saving  # the trainer is busy with it until it is saved
    policy = await context.policies.saved(number) if begun else context.policies.after(number)
    if policy.saved and context.find(number, "handover", policy.digest):
        return
    with context.display.stage(number, "sync weights") as stage:
        stage.report({"doing": "out of the trainer's memory"})
        answer = await _from_memory(context, number, policy) if context.workers.share_memory else None
        if answer is None:
            stage.report({"doing": "from the checkpoint"})
            policy = await context.policies.saved(number)
            answer = await context.workers.sampler.call(SamplerWorker.use, policy=policy)
    meta: dict[str, Any] = {**asdict(answer.result), **answer.work}
    if policy.saved:
        context.commit(number, "handover", [], meta, policy.digest)
    else:
        assert trained is not None
        trained.once_saved(lambda saved: context.commit(number, "handover", [], meta, saved.digest))


async def _from_memory(context: RoundContext, number: int, policy: PolicyRef) -> Answer[Drift] | None:
    """Has the sampler take the weights out of the trainer's memory, and says how far they then are apart.

    None if that cannot be, or if either of them dies over it. The sampler then has the weights that it had, or it is
    ended, and another one reads the checkpoint.
    """
    sampler = context.workers.sampler
    try:
        if not await _send_weights(context, policy):
            return None
    except (WorkerDiedError, EngineError, LostUpdateError) as error:
        context.display.say(f"round {number}: the weights did not come through memory: {error}")
        return None
    if (trained := context.policies.trained(number)) is not None:
        trained.begin_saving()
    return await sampler.call(SamplerWorker.finish_weights, policy=policy)


async def _send_weights(context: RoundContext, policy: PolicyRef) -> bool:
    """Sends all weights from the trainer's memory to the sampler; False, and nothing is changed, if that cannot be.

    While the sampler takes a piece, the trainer makes the next one. A sampler that has got some of them alone is ended.
    """
    sampler, trainer = context.workers.sampler, context.workers.trainer
    wanted = (await sampler.call(SamplerWorker.wanted_weights, policy=policy)).result
    if wanted is None:
        return False
    count = (await trainer.call(TrainerWorker.begin_sending, policy=policy, wanted=wanted)).result
    if not count:
        return False
    piece = await _piece(context, 0)
    try:
        for number in range(1, count):
            piece, _ = await asyncio.gather(
                _piece(context, number), sampler.call(SamplerWorker.take_weights, piece=piece)
            )
        await sampler.call(SamplerWorker.take_weights, piece=piece)
        await trainer.call(TrainerWorker.end_sending)
    except (WorkerDiedError, EngineError, LostUpdateError):
        await context.workers.dismiss_sampler()
        raise
    return True


async def _piece(context: RoundContext, number: int) -> WeightPiece:
    piece = (await context.workers.trainer.call(TrainerWorker.send_weights, number=number)).result
    if piece is None:  # the trainer has said why
        raise EngineError("the sampler reads the checkpoint instead")
    return piece
