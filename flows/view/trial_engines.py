"""The engines that answer prompts that people try: processes begun on demand, ended when idle, few at a time."""

import asyncio
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flows.host.allotment import Allotment
from flows.host.scratch import held_directory
from flows.registry.first_facts import sampled_in
from flows.remote.calls import Client
from flows.remote.worker_process import WorkerProcess, worker_environment
from flows.workers.references import PolicyRef
from flows.workers.trial import TrialSettings, TrialWorker, Tried, TriedPrompt, VllmTrialWorker
from pipeline.errors import ConfigError, EngineError
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store

EngineName = Literal["transformers", "vllm"]
ENGINES: Mapping[EngineName, str] = {"transformers": "starts in seconds", "vllm": "starts in half a minute to a minute"}
"""The engines to choose from, and what a person should know of each."""
IDLE_SECONDS = 300.0
"""After these without a prompt the engines are ended, and their memory is free."""
_MOST = 2
"""Processes at a time: two policies of other shapes under vLLM have one each."""
_MOST_THREADS = 4
_MOST_SEQUENCES = 2
_END_SECONDS = 20.0
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_WORKERS = {"transformers": "trial", "vllm": "vllm_trial"}


@dataclass(frozen=True)
class Engine:
    """What answers for a policy; equal ones share a process.

    Attributes:
        alike: what policies must have in common for that: nothing under transformers, and under vLLM, which takes new
            weights in place, their configuration, tokenizer, device and precision, and
            the shape of the adapters that it serves beside them.
        recipe: what its process is given.
    """

    name: EngineName
    alike: tuple[str, ...]
    recipe: Recipe = field(compare=False)


def engine_for(store: Store, run: Run, recipe: Recipe, policy: PolicyRef, name: EngineName) -> Engine:
    """Returns what answers for a policy of a run.

    Raises:
        ConfigError: vLLM does not take it.
    """
    threads = min(_MOST_THREADS, max(1, len(os.sched_getaffinity(0)) // 2))
    devices = recipe.devices.model_copy(update={"cpu_threads": threads, "sampler": recipe.engines[0]})
    if name == "transformers":
        return Engine(name, (), recipe.model_copy(update={"devices": devices}))
    precision = Allotment.of(recipe, sampled_in=sampled_in(store, run)).precision
    changes = {"engine": "vllm", "precision": precision, "max_sequences": _MOST_SEQUENCES}
    sampling = recipe.sampling.model_copy(update=changes)
    changed = recipe.model_copy(update={"devices": devices, "sampling": sampling})
    try:
        given = Recipe.model_validate(changed.model_dump(mode="json"))
    except ValidationError as error:
        raise ConfigError(f"vLLM cannot answer for run '{run.name}': {error.errors()[0]['msg']}") from error
    lora = given.update.lora if given.adapter_serving != "merged" else None
    alike = [file.sha256 for file in policy.base or policy.files if not file.path.endswith(_WEIGHTS)]
    return Engine(name, (*alike, devices.sampler, precision, str(lora)), given)


@dataclass
class _Process:
    carrier: WorkerProcess
    scratch: Path


class Engines:
    """The processes, and the thread that talks to them; one answers at a time.

    Args:
        store: of the policies.

    Raises:
        ConfigError: there is no room for their files, or no further thread.
    """

    def __init__(self, store: Store) -> None:
        self._root = store.root
        self._processes: OrderedDict[Engine, _Process] = OrderedDict()
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._begun = 0
        with ExitStack() as undone:
            try:
                self.scratch = undone.enter_context(held_directory("rondo-try"))
                self._loop = asyncio.new_event_loop()
                undone.callback(self._loop.close)
                self._thread = threading.Thread(target=self._loop.run_forever, name="trials", daemon=True)
                self._thread.start()
            except (OSError, RuntimeError) as error:  # no room, no more files, no more threads
                raise ConfigError(
                    f"the engine that answers cannot start: {error}; make room for it on this machine, or set "
                    "TMPDIR to a directory with room, and try again"
                ) from error
            self._open = undone.pop_all()

    @property
    def pids(self) -> list[int]:
        """Returns the process ids of the engines that run."""
        return [process.carrier.pid for process in list(self._processes.values()) if process.carrier.pid is not None]

    def submit(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Does this in the thread, after what was submitted before; the engines stay until they are idle."""
        asyncio.run_coroutine_threadsafe(self._in_turn(work), self._loop)

    async def answer(
        self,
        engine: Engine,
        policy: PolicyRef,
        prompt: TriedPrompt,
        settings: TrialSettings,
        hear: Callable[[Mapping[str, Any]], None],
    ) -> Tried:
        """Answers a prompt, within work that was submitted; starts the engine if it does not run.

        Args:
            hear: is told of its stages, ``starts``, ``loads`` and ``samples``, and of the tokens that are sampled.
        """
        process = await self._process(engine)
        hear({"stage": "starts" if process.carrier.pid is None else "samples"})
        answer = TrialWorker.answer if engine.name == "transformers" else VllmTrialWorker.answer
        client = Client[Any](process.carrier, on_progress=hear)
        try:
            answered = await client.call(answer, policy=policy, prompt=prompt, settings=settings)
        except EngineError:  # which cannot be used after that
            await self._dismiss(engine)
            raise
        tried: Tried = answered.result
        return tried

    def close(self) -> None:
        """Ends all, whatever they are doing."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_END_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_SECONDS)
        self._open.close()

    async def _in_turn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            await work()
            self._idle = self._loop.call_later(IDLE_SECONDS, self._rest)

    async def _process(self, engine: Engine) -> _Process:
        """Returns the process of an engine, which begins with the first call; the one used last is kept last."""
        if engine not in self._processes:
            while len(self._processes) >= _MOST:
                await self._dismiss(next(iter(self._processes)))
            self._begun += 1
            scratch = self.scratch / f"engine-{self._begun}"
            scratch.mkdir()
            given = engine.recipe.model_dump(mode="json")
            arguments = {"root": self._root, "run": "", "recipe": given, "scratch": str(scratch)}
            environment = worker_environment(engine.recipe.devices.threads)
            log = self.scratch / f"{scratch.name}.log"
            carrier = WorkerProcess(_WORKERS[engine.name], arguments, log, environment)
            self._processes[engine] = _Process(carrier, scratch)
        self._processes.move_to_end(engine)
        return self._processes[engine]

    async def _dismiss(self, engine: Engine) -> None:
        """Ends a process, and removes the copies of weights that it has made; its log stays."""
        process = self._processes.pop(engine)
        await process.carrier.stop()
        shutil.rmtree(process.scratch, ignore_errors=True)

    def _rest(self) -> None:
        self._idle = None
        self._ending = self._loop.create_task(self._dismiss_all())

    async def _dismiss_all(self) -> None:
        async with self._turn:
            for engine in list(self._processes):
                await self._dismiss(engine)

    async def _end(self) -> None:
        """Ends the processes, and waits for those who waited for them."""
        for process in self._processes.values():
            await process.carrier.stop()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
