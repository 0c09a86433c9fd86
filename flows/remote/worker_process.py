"""The parent's side of a worker process: started when asked, and again when it dies.

Workers keep no state that matters: each call names the policy and the files that it needs. So a call to a worker that
has died starts a new one and is simply made again, by whoever asked (see ``flows/round/step.py``, and
``retry_on_worker_death`` in ``flows/round/shard_steps.py``). Of a worker that takes several calls at once, all that
were in progress die with it. An update alone is in the memory of its worker for a while: there it is begun again
(`LostUpdateError`).

A worker that hangs is taken for dead: one that was asked and that for ``HUNG_SECONDS`` has said nothing, while it and
its own children have computed nothing. That finds deadlocks, stopped processes and reads that never return, and spares
slow work of any length; it does not find an endless loop. Sending a sign of life from a thread of the child would find
less: a deadlock leaves such a thread alive.

That a worker has ended is seen by the process itself, not by the end of its pipe: what it has started may hold that for
as long as it likes. With the worker ends all that is left of its session.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flows.errors
import pipeline.errors
import storage.errors
from flows.errors import WorkerDiedError, WorkerError
from flows.host.processes import Stillness, descendants, kill, kill_session
from flows.remote.calls import Progress
from flows.remote.torchrun import Torchrun
from pipeline.errors import EngineError

LINE_LIMIT = 64 * 2**20  # longest answer, in bytes
GRACE_SECONDS = 5.0
HUNG_SECONDS = 900.0  # longer than any one wait for a network that itself gives up in time
IDLE_CPU_SECONDS = 0.1  # what a process that hangs may still use in that time
_LOOK_SECONDS = 5.0
_WATCH_SECONDS = 0.25

# CPU libraries of two workers side by side must not spin while they wait: each would hold a core from the other.
_QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


def worker_environment(cpu_threads: int) -> dict[str, str]:
    """Returns the variables of every worker."""
    return {"OMP_NUM_THREADS": str(cpu_threads), **_QUIET_THREADS}


@dataclass
class _Waiting:
    """Who waits for an answer, and of which child."""

    process: asyncio.subprocess.Process
    answer: "asyncio.Future[Any]"
    on_progress: Progress | None


class WorkerProcess:
    """One child process that holds one worker.

    Args:
        kind: a name in ``flows.remote.worker_main.WORKERS``.
        arguments: what the worker's constructor takes; must be JSON.
        log: the file that collects what the child prints.
        environment: variables on top of this process's own.
        ranks: the processes that do its work together, if it is not one. The child then is torchrun, and the first of
            them answers.
        capacity: calls that it takes at once; further ones wait here.
    """

    def __init__(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        log: Path,
        environment: Mapping[str, str],
        ranks: Torchrun | None = None,
        capacity: int = 1,
    ) -> None:
        self.kind = kind
        self.capacity = capacity
        self._arguments = dict(arguments)
        self._log = log
        self._environment = dict(environment)
        self._ranks = ranks
        self._places = asyncio.Semaphore(capacity)
        self._all_places = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._starting = asyncio.Lock()
        self._requests = 0
        self._stopped = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Returns the process id of the child, if one runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Starts the child and waits until its worker is constructed."""
        async with self._starting:
            await self._ensure_started()

    async def call(
        self, method: str, *, on_progress: Progress | None = None, alone: bool = False, **arguments: Any
    ) -> Any:
        """Returns the answer of one method.

        Args:
            alone: whether to wait until nothing else is in progress, and to let nothing else begin meanwhile.

        Raises:
            RondoError, StoreError: what the worker raised, with its own class and sentence.
            WorkerDiedError: the child ended before it answered.
        """
        async with self._place(alone):
            async with self._starting:
                await self._ensure_started()
            self._requests += 1
            number, process = self._requests, self._process
            assert process is not None
            assert process.stdin is not None
            request = {"id": number, "method": method, "arguments": arguments}
            answer = self._await_answer(process, number, on_progress)
            try:
                # A pipe that is closed is heard of by the reader, which sees the end of the child.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    process.stdin.write((json.dumps(request) + "\n").encode())
                    await process.stdin.drain()
                return await answer
            except asyncio.CancelledError:
                # Nobody would hear what it goes on with: a worker that was interrupted is not used again.
                await self._end()
                raise
            finally:
                self._waiting.pop(number, None)

    async def dismiss(self) -> None:
        """Ends the child once it has answered what it was asked; the next call starts another."""
        async with self._place(alone=True), self._starting:
            await self._end()

    async def stop(self) -> None:
        """Ends the child, whatever it is doing: closes its pipe, and kills it if that is not enough."""
        self._stopped = True
        await self._end()

    @contextlib.asynccontextmanager
    async def _place(self, alone: bool) -> AsyncIterator[None]:
        places = self.capacity if alone else 1
        async with contextlib.AsyncExitStack() as taken:
            if alone:  # two that each hold some of the places would wait for each other
                await taken.enter_async_context(self._all_places)
            for _ in range(places):
                await taken.enter_async_context(self._places)
            yield

    async def _ensure_started(self) -> None:
        if self._stopped:
            raise WorkerError(f"the {self.kind} was asked after it had been stopped")
        if self.pid is not None and self._reader is not None and not self._reader.done():
            return
        command, environment = self._command()
        try:
            self._log.parent.mkdir(exist_ok=True)  # without its parents: a root that was moved is not made again
            log = self._log.open("ab")
        except OSError as error:
            raise WorkerError(
                f"the {self.kind} cannot be started, as its log {self._log} cannot be written: {error.strerror}"
            ) from error
        with log:
            self._process = await asyncio.create_subprocess_exec(
                *command, self.kind, json.dumps(self._arguments),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env={**os.environ, **environment}, limit=LINE_LIMIT,
                # A Ctrl-C in the terminal is for the flow, which then closes the pipes in order.
                start_new_session=True,
            )  # fmt: skip
        self.starts += 1
        ready = self._await_answer(self._process, 0, None)
        self._reader = asyncio.create_task(self._read(self._process))
        try:
            await ready
        finally:
            self._waiting.pop(0, None)

    def _await_answer(
        self, process: asyncio.subprocess.Process, number: int, on_progress: Progress | None
    ) -> "asyncio.Future[Any]":
        waiting = _Waiting(process, asyncio.get_running_loop().create_future(), on_progress)
        self._waiting[number] = waiting
        return waiting.answer

    def _command(self) -> tuple[list[str], dict[str, str]]:
        """Returns the command that starts the worker, and its environment."""
        if self._ranks is None:
            return [sys.executable, "-m", "flows.remote.worker_main"], self._environment
        command, more = self._ranks.prepare(self._environment.get("TMPDIR"))
        return command, {**self._environment, **more}

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hands the child's answers to those who wait for it, until it ends; then none of them waits any more."""
        end: Exception | None = None
        try:
            while line := await self._line(process):
                message = json.loads(line)
                if message["id"] is None:
                    raise self._error(message["error"])
                waiting = self._waiting.get(message["id"])
                if waiting is None or waiting.answer.done():
                    continue
                if "progress" in message:
                    if waiting.on_progress is not None:
                        waiting.on_progress(message["progress"])
                elif "result" in message:
                    waiting.answer.set_result(message["result"])
                else:
                    error = self._error(message["error"])
                    if isinstance(error, EngineError) or self._ranks is not None:
                        # An engine that failed is not asked again: the next call starts a new one. Ranks beside one
                        # that failed may wait for it for ever.
                        await self._kill(process)
                    if not waiting.answer.done():  # whoever asked may have gone meanwhile
                        waiting.answer.set_exception(error)
        except Exception as error:
            end = error
        code = await self._kill(process)
        for waiting in self._waiting.values():  # a child that was started since may have some of its own
            if waiting.process is process and not waiting.answer.done():
                waiting.answer.set_exception(end or self._died(code))

    async def _line(self, process: asyncio.subprocess.Process) -> bytes:
        """Reads the child's next line, empty if it has ended; raises WorkerDiedError if it hangs."""
        assert process.stdout is not None
        reading = asyncio.ensure_future(process.stdout.readline())
        still, ended = Stillness(process.pid, IDLE_CPU_SECONDS, _LOOK_SECONDS), False
        try:
            while not (await asyncio.wait({reading}, timeout=_WATCH_SECONDS))[0]:
                if ended:  # for so long that what it had said itself has been read
                    return b""
                ended = process.returncode is not None
                if not self._waiting:  # nobody asked it anything
                    still.reset()
                elif await asyncio.to_thread(still.seconds) > HUNG_SECONDS:
                    raise WorkerDiedError(
                        f"the {self.kind} process hung, with no word and no work for {HUNG_SECONDS:.0f} s, and was "
                        f"killed; its log is {self._log}"
                    )
            return reading.result()
        finally:
            reading.cancel()

    def _error(self, error: Mapping[str, str]) -> Exception:
        known = known_error(error["kind"], error["message"]) if error["kind"] != "WorkerError" else None
        return known or WorkerError(f"the {self.kind} failed: {error['message']}; its log is {self._log}")

    def _died(self, code: int) -> Exception:
        missing = self._ranks.failure() if self._ranks is not None else None
        return missing or WorkerDiedError(
            f"the {self.kind} process ended with status {code} in its work; its log is {self._log}"
        )

    async def _end(self) -> None:
        process, reader = self._process, self._reader
        self._process = self._reader = None
        if process is not None:
            await self._kill(process)
        if reader is not None:
            await asyncio.gather(reader, return_exceptions=True)

    @staticmethod
    async def _kill(process: asyncio.subprocess.Process) -> int:
        """Ends the child with all that it has started; returns its status."""
        assert process.stdin is not None
        parts = descendants(process.pid)  # of an engine on several GPUs; afterwards nobody could tell whose they were
        process.stdin.close()
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                code = await _status(process)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            code = await _status(process)
        kill(parts)
        await asyncio.to_thread(kill_session, process.pid)
        transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]
        transport.close()  # its pipes, which somebody else may still hold
        return code


async def _status(process: asyncio.subprocess.Process) -> int:
    """Returns the status with which a process ends; asyncio's ``wait`` would wait for all that hold its pipes."""
    while process.returncode is None:
        await asyncio.sleep(0.01)
    return process.returncode


def known_error(kind: str, message: str) -> Exception | None:
    """Makes the exception that another process raised, by its name and sentence; None if we have no such class."""
    for module in (pipeline.errors, storage.errors, flows.errors):
        known = getattr(module, kind, None)
        if known is not None:
            return _plain(known, message)
    return None


def _plain(kind: type[Exception], message: str) -> Exception:
    """Makes an exception of this class with this sentence, whatever its constructor takes."""
    # What derives from MemoryError is made by Exception's own, as its own refuses to.
    error = Exception.__new__(kind) if issubclass(kind, MemoryError) else kind.__new__(kind)
    error.args = (message,)
    return error
