"""The sampling stage of a round by itself: the sampler's process alone is started, in a fork of a run."""

import contextlib
import time
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import cast

import psutil
from benchmarks.round_runs import Rounds
from rich.console import Console

from flows.host.allotment import Allotment
from flows.host.progress import Display
from flows.host.scratch import scratch_directory
from flows.monitors.monitors import Monitors
from flows.monitors.notifications import Notifier
from flows.monitors.prefect_artifacts import Artifacts
from flows.prefect_api.control import Control
from flows.registry.resume import header
from flows.remote.calls import Client
from flows.remote.worker_process import WorkerProcess
from flows.round.context import RoundContext
from flows.round.policies import Policies
from flows.round.shard_steps import sample_shard
from flows.round.shards import gather, prompt_rows
from flows.round.worker_set import create_workers
from flows.run.fork_history import import_parent_rounds
from flows.workers.references import PromptBatch
from flows.workers.sampler import SamplerWorker
from storage.retention.prune import create_fork


class OurSampler:
    """A sampler whose candidates are committed as those of any round, sampled by the policy that the run ended with."""

    def __init__(self, context: RoundContext, scratch: Path, last: int) -> None:
        self._context, self._scratch, self._last = context, scratch, last
        self._engines = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, source: Rounds, name: str) -> AsyncIterator["OurSampler"]:
        """In a fork of this name of a run, at its last round."""
        store, recipe, last = source.store, source.recipe, len(source.run.rounds()) - 1
        run = create_fork(store, source.run, last, name, header(recipe), source.run.files(last, "checkpoint"))
        with run.writer() as writer, scratch_directory(run.identity) as scratch:
            import_parent_rounds(store, run, writer)
            display, control = Display(Console(file=StringIO())), Control(run, writer, None, watched=False)
            monitors = Monitors(Artifacts(name, display, "", shown=False), Notifier({}, (), display))
            workers = create_workers(store, run, recipe, Allotment.of(recipe), scratch, scratch / "logs", display.say)
            policies = Policies(run, recipe)
            try:
                yield cls(
                    RoundContext(store, run, writer, recipe, workers, policies, display, control, monitors),
                    scratch, last,
                )  # fmt: skip
            finally:
                await workers.stop()

    async def sample(self, number: int) -> dict[str, float]:
        """A round's sampling stage: seconds from the first request to the last entry in the log, and its tokens.

        ``processor`` are the seconds of both processes, the sampler's and this one's, which on a busy machine say more.
        """
        context = self._context
        batch, rows = PromptBatch.training(number, self._last), prompt_rows(context, number, held_out=False)
        with context.display.stage(number, "sample", None, len(rows)) as stage:
            started, processor = time.perf_counter(), self._processor()
            parts = enumerate(rows)
            entries = await gather(sample_shard(context, number, index, part, batch, stage) for index, part in parts)
            seconds, processor = time.perf_counter() - started, self._processor() - processor
        tokens = sum(entry.meta["tokens"] for entry in entries)
        return {"seconds": seconds, "processor": processor, "tokens": tokens}

    def _processor(self) -> float:
        pid = cast(WorkerProcess, self._context.workers.sampler.carrier).pid
        times = psutil.Process(pid).cpu_times() if pid else psutil.Process().cpu_times()
        return times.user + times.system + (time.process_time() if pid else 0.0)

    async def sync_weights(self, round: int) -> float:
        """Seconds until the engine computes with the weights of a round and has shown it, as the flow sees it."""
        return await self._use(self._context.workers.sampler, round)

    async def new_engine(self, round: int) -> tuple[float, float]:
        """Seconds from nothing to an engine that has shown the same, in a process of its own; those after imports."""
        self._engines += 1
        scratch = self._scratch / f"engine {self._engines}"
        scratch.mkdir()
        context = self._context
        sampler = create_workers(
            context.store, context.run, context.recipe, Allotment.of(context.recipe), scratch, scratch,
            context.display.say,
        ).sampler  # fmt: skip
        started = time.perf_counter()
        await sampler.carrier.start()
        imported = time.perf_counter() - started
        in_place = await self._use(sampler, round)
        await sampler.carrier.stop()
        return imported + in_place, in_place

    async def _use(self, sampler: Client[SamplerWorker], round: int) -> float:
        started = time.perf_counter()
        await sampler.call(SamplerWorker.use, policy=self._context.policies.after(round))
        return time.perf_counter() - started
