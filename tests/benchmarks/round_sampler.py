"""The sampling stage of a round by itself: the sampler's process alone is started, in a fork of a run."""

import contextlib
import time
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import psutil
from benchmarks.round_runs import Rounds
from rich.console import Console

from flows.host.progress import Display
from flows.host.scratch import scratch_directory
from flows.monitors.notifications import Notifier
from flows.prefect_api.control import Control
from flows.registry.resume import header
from flows.remote.worker_process import WorkerProcess
from flows.round.context import Session, enter
from flows.round.shard_steps import sample_shard
from flows.round.shards import gather
from flows.run.fork_history import import_parent_rounds
from flows.workers.references import PromptBatch
from storage.retention.prune import create_fork


class OurSampler:
    """A sampler whose candidates are committed as those of any round, sampled by the policy that the run ended with."""

    def __init__(self, session: Session, scratch: Path, last: int) -> None:
        self._session, self._scratch, self._last = session, scratch, last
        self._engines = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, source: Rounds, name: str) -> AsyncIterator["OurSampler"]:
        """In a fork of this name of a run, at its last round."""
        store, recipe, last = source.store, source.recipe, len(source.run.rounds()) - 1
        run = create_fork(store, source.run, last, name, header(recipe))
        with run.writer() as writer, scratch_directory(store.root, name) as scratch:
            import_parent_rounds(store, run, writer)
            display, control = Display(Console(file=StringIO())), Control(run, writer, None, watched=False)
            notifier = Notifier({}, (), display)
            session = Session.create(store, run, writer, recipe, display, scratch, scratch / "logs", control, notifier)
            enter(session)
            try:
                yield cls(session, scratch, last)
            finally:
                await session.stop()

    async def sample(self, number: int) -> dict[str, float]:
        """A round's sampling stage: seconds from the first request to the last entry in the log, and its tokens.

        ``processor`` are the seconds of both processes, the sampler's and this one's, which on a busy machine say more.
        """
        session = self._session
        batch, rows = PromptBatch.training(number, self._last), session.shards(number, held_out=False)
        with session.display.stage(number, "sample", None, len(rows)) as stage:
            started, processor = time.perf_counter(), self._processor()
            entries = await gather(sample_shard(number, index, part, batch, stage) for index, part in enumerate(rows))
            seconds, processor = time.perf_counter() - started, self._processor() - processor
        tokens = sum(entry.meta["tokens"] for entry in entries)
        return {"seconds": seconds, "processor": processor, "tokens": tokens}

    def _processor(self) -> float:
        pid = self._session.sampler.pid
        times = psutil.Process(pid).cpu_times() if pid else psutil.Process().cpu_times()
        return times.user + times.system + (time.process_time() if pid else 0.0)

    async def sync_weights(self, round: int) -> float:
        """Seconds until the engine computes with the weights of a round and has shown it, as the flow sees it."""
        return await self._use(self._session.sampler, round)

    async def new_engine(self, round: int) -> tuple[float, float]:
        """Seconds from nothing to an engine that has shown the same, in a process of its own; those after imports."""
        self._engines += 1
        scratch = self._scratch / f"engine {self._engines}"
        scratch.mkdir()
        session = self._session
        sampler = Session.create(
            session.store, session.run, session.writer, session.recipe, session.display, scratch, scratch,
            session.control, session.notifier,
        ).sampler  # fmt: skip
        started = time.perf_counter()
        await sampler.start()
        imported = time.perf_counter() - started
        in_place = await self._use(sampler, round)
        await sampler.stop()
        return imported + in_place, in_place

    async def _use(self, sampler: WorkerProcess, round: int) -> float:
        started = time.perf_counter()
        await sampler.call("use", policy=self._session.policy(round).to_json())
        return time.perf_counter() - started
