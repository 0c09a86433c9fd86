"""Engines on several devices of this machine, one process each: see `flows.remote.replica_pool`."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flows.errors import WorkerDiedError
from flows.remote.calls import Progress
from flows.remote.replica_pool import ReplicaPool
from flows.remote.worker_process import WorkerProcess
from pipeline.errors import EngineError


class EnginePool(ReplicaPool):
    """A worker that processes on several devices of this machine do the work of.

    Args:
        devices: where each of them works.
        make: makes the process of a device, by its place; it is started when it is asked.
        capacity: calls that one process takes at once.
        say: tells people who joins and leaves.
    """

    def __init__(
        self,
        kind: str,
        devices: Sequence[str],
        make: Callable[[int], WorkerProcess],
        capacity: int,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(kind, len(devices), capacity, say)
        # Several on the processor would look like one.
        self._names = [f"{device}/{place}" if device == "cpu" else device for place, device in enumerate(devices)]
        self._processes = [make(place) for place in range(len(devices))]

    @property
    def pids(self) -> list[int]:
        """Returns the process ids of the engines that run."""
        return [process.pid for process in self._processes if process.pid is not None]

    async def dismiss(self) -> None:
        """Ends the processes once they have answered what they were asked; the next call to each starts it again."""
        await asyncio.gather(*(process.dismiss() for process in self._processes))

    def _make(self, place: int) -> "_LocalReplica":
        return _LocalReplica(self._processes[place], self._names[place])


class _LocalReplica:
    """A process of this machine in all its lives."""

    def __init__(self, process: WorkerProcess, node: str) -> None:
        self._process, self.node, self.alive = process, node, False
        self._died = asyncio.Event()

    async def join(self) -> Mapping[str, str]:
        """Starts the process."""
        await self._process.start()
        self._died.clear()
        self.alive = True
        return {}

    async def ask(self, request: Mapping[str, Any], on_progress: Progress | None) -> Any:
        """Returns the answer of one method of its worker; an engine that fails has died, and is joined anew."""

        def hear(told: Mapping[str, Any]) -> None:
            if on_progress is not None:
                on_progress({**told, "device": self.node} if "device" in told else told)

        try:
            return await self._process.call(
                request["method"], on_progress=hear, alone=request["alone"], **request["arguments"]
            )
        except (WorkerDiedError, EngineError):
            self.alive = False
            self._died.set()
            raise

    async def listen(self) -> None:
        """Returns when it has died in its work; idle, it is started again by the next call."""
        await self._died.wait()

    async def end(self) -> None:
        """Ends the process, whatever it is doing."""
        await self._process.stop()
