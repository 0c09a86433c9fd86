"""Worker processes in tests."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from flows.remote.worker_process import WorkerProcess


def use(worker: WorkerProcess, work: Callable[[], Awaitable[Any]]) -> Any:
    """What the work returns; the worker is stopped then, or where it fails."""

    async def run() -> Any:
        try:
            return await work()
        finally:
            await worker.stop()

    return asyncio.run(run())
