"""What a run will take of this machine, before it starts: time, memory and disk, by the planner's arithmetic."""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.analysis.capacity import plan_recipe
from flows.host.text import counted
from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.planning.devices import DEVICES, FLOAT
from pipeline.planning.plan import Plan
from pipeline.recipe import Recipe

_SURE = 0.5
"""Share of the planned bytes that a run writes in any case: weights may lie in half of the planned precision."""


@dataclass(frozen=True)
class Forecast:
    """What the rounds that a run still has to do take, on paper.

    Attributes:
        plan: of a round.
        rounds: how many there are to do.
        begins: whether the run begins with them, and so makes its first checkpoint and evaluates it.
    """

    plan: Plan
    rounds: int
    begins: bool

    @property
    def seconds(self) -> float:
        """Sums the rounds, and round 0's evaluation."""
        return self.rounds * (self.plan.seconds + self._served) + self.begins * self._evaluation

    @property
    def _served(self) -> float:
        """Returns the seconds of the evaluation as one would serve, which the plan of a round does not have."""
        again = self.plan.work.recipe.evaluation.serving is not None
        return again * sum(self.plan.stages["evaluate"].get(part, 0.0) for part in ("sample", "judge"))

    @property
    def _evaluation(self) -> float:
        return sum(self.plan.stages["evaluate"].values()) + self._served

    @property
    def disk(self) -> float:
        """Sums the bytes that the store grows by."""
        first = FLOAT * self.plan.work.policy.parameters
        return self.rounds * sum(self.plan.store.values()) + self.begins * first

    def lines(self, memory: float, disk: float | None) -> list[str]:
        """Says it in two lines.

        Args:
            memory: bytes that are free, of the machine or of a device.
            disk: bytes that are free where the store lies; None if nobody knows, as of a bucket.
        """
        plan, stages = self.plan, {name: sum(parts.values()) for name, parts in self.plan.stages.items()}
        stages |= {"evaluate": self._evaluation}
        longest = ", ".join(f"{name} {_time(stages[name])}" for name in ("sample", "judge", "update", "evaluate"))
        needed = max(sum(parts.values()) for parts in plan.memory.values())
        short = " (too little: lower update.token_budget or sampling.cache_gib)" if needed > memory else ""
        room = "" if disk is None else f" of {_size(disk)} free{' (too little)' if self.disk > disk else ''}"
        return [
            f"on paper, as on {plan.devices} x {plan.device.name}: about {_time(self.seconds)} of work for "
            f"{counted(self.rounds, 'round')} of {_time(plan.seconds + self._served)} each ({longest})",
            f"memory about {_size(needed)} of {_size(memory)} free{short}, disk about {_size(self.disk)}{room}; "
            "'rondo plan' says what of",
        ]


def forecast(recipe: Recipe, done: int, goal: int, where: Path | None) -> list[str]:
    """Says in at most two lines what the rounds up to ``goal`` take of this machine, or why nobody can say.

    No hub is asked: of a model there, the size is known if its configuration was fetched before.

    Args:
        done: the newest finished round; -1 if the run begins.
        where: the directory of the store; None if it is a bucket.

    Raises:
        ConfigError: the disk has less room than the rounds write in any case.
    """
    recipe = recipe.model_copy(update={"policy": with_local_config(recipe.policy)})
    try:
        plan = plan_recipe(recipe, _device(recipe))
    except (ConfigError, json.JSONDecodeError) as error:
        return [f"what the run will take cannot be said: {str(error).partition(': ')[0]}"]
    found = Forecast(plan, goal - max(done, 0), done < 0)
    free = None if where is None else float(shutil.disk_usage(where).free)
    if free is not None and _SURE * found.disk > free:
        raise ConfigError(
            f"{where} has {_size(free)} free, and {counted(found.rounds, 'round')} of this recipe write about "
            f"{_size(found.disk)}: make room, take another --root, fewer rounds, or an adapter (update.lora)"
        )
    memory = plan.device.memory or float(psutil.virtual_memory().available)
    return found.lines(memory, free)


def with_local_config(policy: object) -> object:
    """Returns the policy with the directory of the hub's cache as its path, if its configuration was fetched before."""
    if not isinstance(policy, PretrainedPolicy) or os.path.isdir(policy.path) or policy.path.count("/") != 1:
        return policy
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(policy.path, "config.json", revision=policy.revision)
    except HFValidationError:  # it is no id, but a path such as ./model.gguf, or a directory that is gone
        return policy
    return policy.model_copy(update={"path": str(Path(cached).parent)}) if isinstance(cached, str) else policy


def _device(recipe: Recipe) -> str | None:
    """Names the planner's device that this machine has; None if it has none of them, or a processor alone.

    torch is there only if the recipe names a GPU, for which it was asked whether there is one.
    """
    torch, wanted = sys.modules.get("torch"), recipe.devices.trainer
    if torch is None or wanted == "cpu" or not torch.cuda.is_available():
        return None
    words = re.split(r"[^a-z0-9]+", torch.cuda.get_device_name(wanted).lower())
    return next((name for name in DEVICES if name in words), None)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{_two_digits(seconds)} s"
    return f"{_two_digits(seconds / 60)} min" if seconds < 7200 else f"{_two_digits(seconds / 3600)} h"


def _size(size: float) -> str:
    return f"{_two_digits(size / 1e9)} GB" if size >= 1e8 else f"{_two_digits(size / 1e6)} MB"


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"
