"""Prompts that people try on two checkpoints, and what these said."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from flows.registry.catalog import run_at_round
from flows.registry.checkpoints import checkpoint_files
from flows.registry.resume import recipe_of
from flows.round.policies import Policies
from flows.view.trial_engines import Engine, EngineName, Engines, engine_for
from flows.workers.references import PolicyRef
from flows.workers.trial import TrialSettings, Tried, TriedPrompt, spoken
from pipeline.errors import ConfigError
from storage.log.store import Store

LONGEST = 100_000
"""Letters of a prompt."""
_KEPT = 50


@dataclass(frozen=True)
class Asked:
    """What a person wants to try.

    Args:
        checkpoints: two, as RUN@ROUND.
        system: the system message; None if the run's prompts are plain texts.
        user: the user's message, or the text.
        engine: what answers.
    """

    checkpoints: tuple[str, str]
    system: str | None
    user: str
    settings: TrialSettings
    engine: EngineName = "transformers"


@dataclass
class Side:
    """One of the two checkpoints, and what it said.

    Attributes:
        problem: why there is no answer.
        stage: what its engine does: it starts, loads weights, or samples; None before its turn.
        since: when that began, in seconds of the monotonic clock.
        tokens: those that were sampled until now; None before the first.
    """

    run: str
    round: int
    engine: Engine
    policy: PolicyRef
    prompt: TriedPrompt
    stage: Literal["starts", "loads", "samples"] | None = None
    since: float = field(default_factory=time.monotonic)
    answer: Tried | None = None
    problem: str | None = None
    tokens: int | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.problem is not None

    @property
    def seconds(self) -> float:
        """Returns how long it has been at its stage."""
        return time.monotonic() - self.since

    def hear(self, told: Mapping[str, Any]) -> None:
        """Takes what the engine tells of its progress."""
        self.tokens = told.get("tokens", self.tokens)
        stage = told.get("stage", "samples" if "tokens" in told else self.stage)
        if stage != self.stage:
            self.stage, self.since = stage, time.monotonic()


@dataclass
class Trial:
    """A prompt that is tried.

    Attributes:
        run: the run on whose page it is tried.
        said: by labeller, which answer is better: left, right or tie; or undo.
    """

    key: str
    run: str
    asked: Asked
    sides: tuple[Side, Side]
    state: Literal["waits", "samples", "done"] = "waits"
    said: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """Returns what the two answers are called: by their checkpoints, if these are two."""
        left, right = (f"{side.run}@{side.round}" for side in self.sides)
        return {"left": left, "right": right} if left != right else {"left": "the first", "right": "the second"}


class Trials:
    """The prompts that were tried, newest last; threads may share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._trials: OrderedDict[str, Trial] = OrderedDict()
        self._lock = threading.Lock()
        self._engines: Engines | None = None

    @property
    def pids(self) -> list[int]:
        """Returns the process ids of the engines that run."""
        engines = self._engines
        return engines.pids if engines is not None else []

    def begin(self, run: str, asked: Asked) -> Trial:
        """Begins to answer a prompt; returns at once.

        Args:
            run: on whose page it is tried.

        Raises:
            ConfigError: there is no such checkpoint, the prompt is empty or too long, or the engine cannot start.
            DroppedFileError: the weights were removed on purpose.
        """
        if not asked.user.strip():
            raise ConfigError("the prompt is empty: write what the two checkpoints are to answer")
        if len(asked.user) + len(asked.system or "") > LONGEST:
            raise ConfigError(f"the prompt has more than {LONGEST:,} letters: shorten it")
        first, second = (self._side(source, asked) for source in asked.checkpoints)
        trial = Trial(secrets.token_urlsafe(9), run, asked, (first, second))
        with self._lock:
            if self._engines is None:
                self._engines = Engines(self._store)
            self._trials[trial.key] = trial
            while len(self._trials) > _KEPT:
                self._trials.popitem(last=False)
            self._engines.submit(partial(_work, self._engines, trial))
        return trial

    def get(self, key: str) -> Trial | None:
        """Returns a trial; None if it is not known, or no longer."""
        with self._lock:
            return self._trials.get(key)

    def close(self) -> None:
        """Ends the engines, whatever they are doing."""
        with self._lock:
            engines, self._engines = self._engines, None
        if engines is not None:
            engines.close()

    def _side(self, source: str, asked: Asked) -> Side:
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
        policy = Policies(run, recipe).after(number)
        return Side(run.name, number, engine_for(self._store, run, recipe, policy, asked.engine), policy, prompt)


async def _work(engines: Engines, trial: Trial) -> None:
    trial.state = "samples"
    for side in trial.sides:
        side.since = time.monotonic()
        try:
            side.answer = await engines.answer(side.engine, side.policy, side.prompt, trial.asked.settings, side.hear)
        except Exception as error:  # nobody else would hear of it, and the page would wait for ever
            side.problem = str(error)
    trial.state = "done"
