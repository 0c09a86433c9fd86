"""The three workers of a run: which carrier each one has, and how they start and end together."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.host.allotment import Allotment
from flows.remote.calls import Carrier, Client
from flows.remote.engine_pool import EnginePool
from flows.remote.ray.cluster import RayCluster, variables
from flows.remote.ray.pool import RayPool
from flows.remote.torchrun import torchrun_of
from flows.remote.worker_process import WorkerProcess, worker_environment
from flows.workers.judge import JudgeWorker
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.config import ReplicasConfig
from pipeline.model.weight_pieces import CAN_SHARE_MEMORY
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store

_OWN = (WorkerProcess, EnginePool)
"""What carries requests to processes of this machine."""


@dataclass(frozen=True)
class WorkerSet:
    """The workers of a run. The first call to each starts it, if it has not been started."""

    sampler: Client[SamplerWorker]
    judge: Client[JudgeWorker]
    trainer: Client[TrainerWorker]

    @property
    def carriers(self) -> tuple[Carrier, ...]:
        """Returns what carries requests to each of them."""
        return self.trainer.carrier, self.sampler.carrier, self.judge.carrier

    @property
    def share_memory(self) -> bool:
        """Says whether samplers and trainer are processes of this machine, and can read each other's memory."""
        carriers = (self.sampler.carrier, self.trainer.carrier)
        return CAN_SHARE_MEMORY and all(isinstance(carrier, _OWN) for carrier in carriers)

    async def stop(self) -> None:
        """Ends the workers."""
        await asyncio.gather(*(carrier.stop() for carrier in self.carriers))

    async def dismiss_sampler(self) -> None:
        """Ends the sampler once it has answered, if it is this machine's own; the next call starts one."""
        if isinstance(self.sampler.carrier, _OWN):
            await self.sampler.carrier.dismiss()

    async def dismiss(self) -> None:
        """Ends this machine's own processes until they are asked again; replicas are the cluster's."""
        own = [carrier for carrier in self.carriers if isinstance(carrier, _OWN)]
        await asyncio.gather(*(carrier.dismiss() for carrier in own))


def create_workers(
    store: Store, run: Run, recipe: Recipe, allotment: Allotment, scratch: Path, logs: Path, say: Callable[[str], None]
) -> WorkerSet:
    """Creates the workers that a recipe asks for; none is started yet.

    Args:
        allotment: what each of them gets of this machine.
        scratch: a local directory that goes with the command.
        logs: where what they print is kept.
        say: tells people of machines and replicas that come and go.
    """
    common = {"root": store.root, "run": run.name, "scratch": str(scratch)}
    temporary = scratch / "tmp"  # what a killed worker leaves goes with the scratch directory
    temporary.mkdir()
    devices, config = recipe.devices, recipe.cluster
    cluster = RayCluster(config) if config.used else None

    def arguments(kind: str) -> dict[str, Any]:
        return {**common, "recipe": allotment.recipe(recipe, kind).model_dump(mode="json")}

    def process(kind: str, capacity: int = 1) -> WorkerProcess:
        ranks = torchrun_of(devices, say) if kind == "trainer" else None
        own = {**worker_environment(allotment.threads[kind]), "TMPDIR": str(temporary)}
        return WorkerProcess(kind, arguments(kind), logs / f"{kind}.log", own, ranks, capacity)

    def engine(place: int) -> WorkerProcess:
        own = scratch / f"sampler {place}"  # for copies, of which each engine has its own
        own.mkdir()
        given = allotment.recipe(recipe, "sampler", place).model_dump(mode="json")
        environment = {**worker_environment(allotment.threads["sampler"]), "TMPDIR": str(temporary)}
        arguments = {**common, "scratch": str(own), "recipe": given}
        return WorkerProcess("sampler", arguments, logs / f"sampler-{place}.log", environment, None, capacity)

    def replicated(kind: str, replicas: ReplicasConfig, capacity: int) -> Carrier:
        if cluster is None or not replicas.replicas:
            return process(kind, capacity)
        given = {**worker_environment(allotment.threads[kind]), **variables(config.environment)}
        return RayPool(
            kind, arguments(kind), run.created, logs / f"{kind}.log", given, replicas, capacity, cluster, say
        )

    def told(kind: str) -> Callable[[str], None]:
        return lambda text: say(f"{kind}: {text}")

    capacity = recipe.sampling.shards_in_flight
    if len(recipe.engines) > 1:
        sampler: Carrier = EnginePool("sampler", recipe.engines, engine, capacity, say)
    else:
        sampler = replicated("sampler", config.sampler, capacity)
    return WorkerSet(
        sampler=Client(sampler, say=told("sampler")),
        judge=Client(replicated("judge", config.judge, 1), say=told("judge")),
        trainer=Client(process("trainer"), say=told("trainer")),
    )
