"""The parent's side of a worker process: started when asked, asked one thing at a time, started again when it dies.

Workers keep no state that matters: each call names the policy and the files that it needs. So a call to a worker
that has died starts a new one and is simply made again, by whoever asked (see ``step`` in ``flows/stages.py``).
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pipeline.errors
import storage.errors
from flows.errors import WorkerDiedError, WorkerError
from pipeline.errors import EngineError

LINE_LIMIT = 64 * 2**20  # longest answer, in bytes
GRACE_SECONDS = 5.0

# Ranks of one machine talk to each other over no other network.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}

Progress = Callable[[Mapping[str, Any]], None]


class WorkerProcess:
    """One child process that holds one worker.

    Args:
        kind: a name in ``flows.worker_main.WORKERS``.
        arguments: what the worker's constructor takes; must be JSON.
        log: the file that collects what the child prints.
        environment: variables on top of this process's own.
        ranks: processes that do its work together. The child then is torchrun, and the first of them answers.
    """

    def __init__(
        self, kind: str, arguments: Mapping[str, Any], log: Path, environment: Mapping[str, str], ranks: int = 1
    ) -> None:
        self.kind = kind
        self._arguments = dict(arguments)
        self._log = log
        self._environment = {**environment, **(_LOOPBACK if ranks > 1 else {})}
        self._ranks = ranks
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._requests = 0
        self._stopped = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the child, where one runs."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    async def start(self) -> None:
        """Starts the child and waits until its worker is constructed."""
        async with self._lock:
            await self._ensure_started()

    async def call(self, method: str, *, on_progress: Progress | None = None, **arguments: Any) -> Any:
        """The answer of one method, after those that were asked before.

        Raises:
            RondoError, StoreError: what the worker raised, with its own class and sentence.
            WorkerDiedError: the child ended before it answered.
        """
        async with self._lock:
            await self._ensure_started()
            self._requests += 1
            request = {"id": self._requests, "method": method, "arguments": arguments}
            process = self._process
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write((json.dumps(request) + "\n").encode())
                await process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                raise await self._died() from None
            try:
                return await self._answer(self._requests, on_progress)
            except asyncio.CancelledError:
                # Its answer would be taken for the next one's: a worker that was interrupted is not used again.
                await self._end()
                raise

    async def stop(self) -> None:
        """Ends the child, whatever it is doing: closes its pipe, and kills it where that is not enough."""
        self._stopped = True
        await self._end()

    async def _ensure_started(self) -> None:
        if self._stopped:
            raise WorkerError(f"the {self.kind} was asked after it had been stopped")
        if self._process is not None and self._process.returncode is None:
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_launcher(self._ranks), self.kind, json.dumps(self._arguments),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env={**os.environ, **self._environment}, limit=LINE_LIMIT,
                # A Ctrl-C in the terminal is for the flow, which then closes the pipes in order.
                start_new_session=True,
            )  # fmt: skip
        self.starts += 1
        await self._answer(0, None)

    async def _answer(self, number: int, on_progress: Progress | None) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if message["id"] != number:
                continue
            if "progress" in message:
                if on_progress is not None:
                    on_progress(message["progress"])
            elif "error" in message:
                error = self._error(message["error"])
                if isinstance(error, EngineError) or self._ranks > 1:
                    # An engine that failed is not asked again: the next call starts a new one. Ranks beside one that
                    # failed may wait for it for ever.
                    await self._end()
                raise error
            else:
                return message["result"]
        raise await self._died()

    def _error(self, error: Mapping[str, str]) -> Exception:
        kind, message = error["kind"], error["message"]
        for module in (pipeline.errors, storage.errors):
            known = getattr(module, kind, None)
            if known is not None:
                return _plain(known, message)
        return WorkerError(f"the {self.kind} failed: {message}; its log is {self._log}")

    async def _died(self) -> WorkerDiedError:
        assert self._process is not None
        code = await self._process.wait()
        return WorkerDiedError(f"the {self.kind} process ended with status {code} in its work; its log is {self._log}")

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _launcher(ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable, "-m", "flows.worker_main"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return [*torchrun, f"--nproc-per-node={ranks}", "-m", "flows.rank_main"]


def _plain(kind: type[Exception], message: str) -> Exception:
    """An exception of this class with this sentence, whatever its constructor takes."""
    # What derives from MemoryError is made by Exception's own, as its own refuses to.
    error = Exception.__new__(kind) if issubclass(kind, MemoryError) else kind.__new__(kind)
    error.args = (message,)
    return error
