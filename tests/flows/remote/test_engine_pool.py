"""Several engines of one machine behind the interface of one: what dies costs its shards in flight, as on Ray."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from flows.errors import WorkerDiedError, WorkerError
from flows.remote.engine_pool import EnginePool
from flows.remote.worker_process import WorkerProcess
from pipeline.errors import DataError, JudgeError
from support.held_run import HeldRun

TESTS = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}


class Bench(HeldRun):
    """The run, and two processes of the judge's worker, the one that starts quickest, which take two shards each."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.said: list[str] = []
        self.pool = EnginePool("judge", ["cpu", "cpu"], self.process, 2, self.said.append)

    def process(self, place: int) -> WorkerProcess:
        scratch = self.directory / f"scratch {place}"
        scratch.mkdir(exist_ok=True)
        arguments = {**self.arguments, "scratch": str(scratch)}
        return WorkerProcess("judge", arguments, self.directory / f"judge-{place}.log", ENVIRONMENT, capacity=2)

    @property
    def given(self) -> list[tuple[str, int]]:
        """Which process has been given which answer, in order of time."""
        return [(answer, pid) for answer, pid, *_ in self.notes()]

    async def judge(self, number: int, devices: set[str] | None = None) -> int:
        """Judges a shard as a step of the flow does; returns how often it had to be asked for."""
        arguments = self.shard(number)
        hear = (lambda told: devices.add(told.get("device", ""))) if devices is not None else None
        for tries in (1, 2, 3):
            try:
                await self.pool.call("judge", on_progress=hear, **arguments)
                return tries
            except WorkerDiedError:
                continue
        raise AssertionError(f"three deaths on shard {number}")


pytestmark = pytest.mark.timeout(300)  # a pool whose engines cannot start leaves these tests waiting


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def use(bench: Bench, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        try:
            return await work()
        finally:
            await bench.pool.stop()

    return asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    """Waits; a test's own limit of time ends it where that never comes."""
    while not condition():
        await asyncio.sleep(0.02)


def test_both_engines_work_and_one_that_dies_costs_what_it_held(bench: Bench) -> None:
    """Each takes two shards at a time; the other one takes what the dead one held, and it comes back."""

    async def work() -> tuple[list[int], set[str]]:
        devices = set[str]()
        (bench.place / "hold").touch()
        calls = [asyncio.create_task(bench.judge(number, devices)) for number in range(6)]
        await until(lambda: len({pid for _, pid in bench.given}) == 2)
        os.kill(bench.given[0][1], signal.SIGKILL)
        await until(lambda: any("has gone; 1 are left" in line for line in bench.said))
        (bench.place / "hold").unlink()
        tries = await asyncio.gather(*calls)
        await until(lambda: bench.pool.replicas == 2)
        return tries, devices - {""}

    assert bench.pool.capacity == 4
    tries, devices = use(bench, work)
    assert sorted(tries) == [1, 1, 1, 1, 2, 2]
    assert devices <= {"cpu/0", "cpu/1"}, "the one that lives may have done all"
    assert devices
    assert len([line for line in bench.said if "joined" in line]) == 3
    assert bench.pool.pids == []
    with pytest.raises(WorkerError, match="asked after it had been stopped"):
        asyncio.run(bench.pool.call("versions"))


def test_an_error_keeps_its_class_and_costs_no_engine(bench: Bench) -> None:
    async def work() -> None:
        await until(lambda: bench.pool.replicas == 2)
        pids = bench.pool.pids
        with pytest.raises(DataError, match="prompt lost"):
            await bench.pool.call("judge", **bench.shard(1, prompt="lost"))
        await bench.pool.dismiss()
        assert bench.pool.pids == []
        assert await bench.judge(2) == 1, "the next call starts one again"
        assert not {*pids} & {*bench.pool.pids}

    async def started() -> None:
        await bench.pool.start()
        await work()

    use(bench, started)


def test_an_engine_that_cannot_start_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one does all; if none can start, whoever asks is told why."""
    start = WorkerProcess.start

    async def fail(self: WorkerProcess) -> None:
        if self._log.name in broken:
            raise JudgeError("this device is gone")
        await start(self)

    monkeypatch.setattr(WorkerProcess, "start", fail)
    broken = {"judge-1.log"}

    async def work() -> list[int]:
        return await asyncio.gather(*(bench.judge(number) for number in range(4)))

    assert use(bench, work) == [1] * 4
    assert "judge: a replica cannot start, and is not asked for again: this device is gone" in bench.said
    assert len({pid for _, pid in bench.given}) == 1
    broken.add("judge-0.log")
    bench.pool = EnginePool("judge", ["cpu", "cpu"], bench.process, 2, bench.said.append)
    with pytest.raises(JudgeError, match="this device is gone"):
        use(bench, work)
