"""Prompts that people try on two checkpoints: an engine in a process of its own, begun on demand, ended when idle."""

import asyncio
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows.host.scratch import held_directory
from flows.registry.catalog import run_at_round
from flows.registry.checkpoints import checkpoint_files
from flows.registry.resume import recipe_of
from flows.remote.calls import Client
from flows.remote.worker_process import WorkerProcess, worker_environment
from flows.round.policies import Policies
from flows.workers.references import PolicyRef
from flows.workers.trial import TrialSettings, TrialWorker, Tried, TriedPrompt, spoken
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.store import Store

IDLE_SECONDS = 300.0
"""After these without a prompt the engine is ended, and its memory is free."""
LONGEST = 100_000
"""Letters of a prompt."""
_KEPT = 50
_MOST_THREADS = 4
_END_SECONDS = 20.0


@dataclass(frozen=True)
class Asked:
    """What a person wants to try.

    Args:
        checkpoints: two, as RUN@ROUND.
        system: the system message; None if the run's prompts are plain texts.
        user: the user's message, or the text.
    """

    checkpoints: tuple[str, str]
    system: str | None
    user: str
    settings: TrialSettings


@dataclass
class Side:
    """One of the two checkpoints, and what it said.

    Attributes:
        problem: why there is no answer.
        tokens: those that were sampled until now; None before the first.
    """

    run: str
    round: int
    policy: PolicyRef
    prompt: TriedPrompt
    answer: Tried | None = None
    problem: str | None = None
    tokens: int | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.problem is not None


@dataclass
class Trial:
    """A prompt that is tried."""

    key: str
    asked: Asked
    sides: tuple[Side, Side]
    state: Literal["waits", "samples", "done"] = "waits"


@dataclass
class _Engine:
    """The process that answers, and the thread that talks to it."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    scratch: Path
    carrier: WorkerProcess
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    idle: asyncio.TimerHandle | None = None
    ending: asyncio.Task[None] | None = None


class Trials:
    """The prompts that were tried, newest last; threads may share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._trials: OrderedDict[str, Trial] = OrderedDict()
        self._lock = threading.Lock()
        self._engine: _Engine | None = None
        self._open = ExitStack()

    @property
    def pid(self) -> int | None:
        """Returns the process id of the engine, if one runs."""
        engine = self._engine
        return engine.carrier.pid if engine is not None else None

    def begin(self, asked: Asked) -> Trial:
        """Begins to answer a prompt; returns at once.

        Raises:
            ConfigError: there is no such checkpoint, the prompt is empty or too long, or the engine cannot start.
            DroppedFileError: the weights were removed on purpose.
        """
        if not asked.user.strip():
            raise ConfigError("the prompt is empty: write what the two checkpoints are to answer")
        if len(asked.user) + len(asked.system or "") > LONGEST:
            raise ConfigError(f"the prompt has more than {LONGEST:,} letters: shorten it")
        first, second = (self._side(source, asked) for source in asked.checkpoints)
        trial = Trial(secrets.token_urlsafe(9), asked, (first[0], second[0]))
        with self._lock:
            engine = self._start(first[1])
            self._trials[trial.key] = trial
            while len(self._trials) > _KEPT:
                self._trials.popitem(last=False)
        asyncio.run_coroutine_threadsafe(self._work(engine, trial), engine.loop)
        return trial

    def get(self, key: str) -> Trial | None:
        """Returns a trial; None if it is not known, or no longer."""
        with self._lock:
            return self._trials.get(key)

    def close(self) -> None:
        """Ends the engine, whatever it is doing."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            asyncio.run_coroutine_threadsafe(_end(engine), engine.loop).result(_END_SECONDS)
            engine.loop.call_soon_threadsafe(engine.loop.stop)
            engine.thread.join(_END_SECONDS)
        self._open.close()

    def _side(self, source: str, asked: Asked) -> tuple[Side, Recipe]:
        run, number = run_at_round(self._store, source.strip())
        recipe = recipe_of(run)
        run.check_kept(checkpoint_files(run, number))
        config = recipe.prompts
        prompt = TriedPrompt(
            text=asked.user if asked.system is None else None,
            messages=None if asked.system is None else spoken(asked.system, asked.user),
            template_kwargs=dict(config.chat_template_kwargs),
            read_special_tokens=getattr(config, "read_special_tokens", False),  # generated prompts spell none
        )
        return Side(run.name, number, Policies(run, recipe).after(number), prompt), recipe

    def _start(self, recipe: Recipe) -> _Engine:
        """Returns the engine; its process begins with the first call."""
        if self._engine is None:
            with ExitStack() as undone:
                try:
                    scratch = undone.enter_context(held_directory("rondo-try"))
                    loop = asyncio.new_event_loop()
                    undone.callback(loop.close)
                    thread = threading.Thread(target=loop.run_forever, name="trials", daemon=True)
                    engine = _Engine(loop, thread, scratch, self._process(recipe, scratch))
                    thread.start()
                except (OSError, RuntimeError) as error:  # no room, no more files, no more threads
                    raise ConfigError(
                        f"the engine that answers cannot start: {error}; make room for it on this machine, or set "
                        "TMPDIR to a directory with room, and try again"
                    ) from error
                self._open, self._engine = undone.pop_all(), engine
        return self._engine

    def _process(self, recipe: Recipe, scratch: Path) -> WorkerProcess:
        threads = min(_MOST_THREADS, max(1, len(os.sched_getaffinity(0)) // 2))
        devices = recipe.devices.model_copy(update={"cpu_threads": threads})
        given = recipe.model_copy(update={"devices": devices}).model_dump(mode="json")
        arguments = {"root": self._store.root, "run": "", "recipe": given, "scratch": str(scratch)}
        return WorkerProcess("trial", arguments, scratch / "engine.log", worker_environment(threads))

    async def _work(self, engine: _Engine, trial: Trial) -> None:
        async with engine.turn:
            if engine.idle is not None:
                engine.idle.cancel()
            trial.state = "samples"
            for side in trial.sides:
                await _answer(engine, side, trial.asked.settings)
            trial.state = "done"
            engine.idle = engine.loop.call_later(IDLE_SECONDS, _dismiss, engine)


async def _answer(engine: _Engine, side: Side, settings: TrialSettings) -> None:
    def hear(told: Mapping[str, Any]) -> None:
        side.tokens = told.get("tokens", side.tokens)

    client = Client[TrialWorker](engine.carrier, on_progress=hear)
    try:
        answered = await client.call(TrialWorker.answer, policy=side.policy, prompt=side.prompt, settings=settings)
        side.answer = answered.result
    except Exception as error:  # nobody else would hear of it, and the page would wait for ever
        side.problem = str(error)


def _dismiss(engine: _Engine) -> None:
    engine.idle = None
    engine.ending = engine.loop.create_task(_dismissed(engine))


async def _dismissed(engine: _Engine) -> None:
    """Ends the process, and removes the copies of weights that it has made; its log stays."""
    async with engine.turn:
        await engine.carrier.dismiss()
        for left in engine.scratch.iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)


async def _end(engine: _Engine) -> None:
    """Ends the process, and waits for those who waited for it."""
    await engine.carrier.stop()
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
