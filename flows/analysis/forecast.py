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
from flows.host.text import counted, quantity
from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.model.gguf_files import find_gguf
from pipeline.planning.devices import DEVICES, HALF
from pipeline.planning.plan import Plan
from pipeline.recipe import Recipe

_UNKNOWN = "how much is free is not known"
_DIGITS = 2
"""More than these would look as if they were known."""


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
        """Sums the rounds, and round 0's evaluation with its gate."""
        return self.rounds * self.plan.seconds + self.begins * (self._stage("evaluate") + self._stage("gate"))

    @property
    def disk(self) -> float:
        """Sums the bytes that the store grows by, at most: completions are seldom as long as they may be."""
        return self.rounds * sum(self.plan.store.values()) + self.begins * self._first

    def surely_written(self, *, made: bool = False) -> float:
        """Sums the bytes of weights, and of what goes with them, that a run whose rounds have updates has to write.

        A warm start's tokenizer may have fewer tokens than the recipe allows, and an adapter may be on some modules
        alone: the planner counts both at their upper bound, and of them nothing is sure. A base may be in half
        precision, whatever its configuration says, unless it is made of a GGUF file.

        Args:
            made: whether the checkpoint of the next round is there already.
        """
        recipe, store = self.plan.work.recipe, self.plan.store
        lora = recipe.update.lora
        if not isinstance(recipe.policy, PretrainedPolicy):
            return 0.0
        each = 0.0 if lora is not None and lora.target_modules else sum(store.values()) - store["tables"]
        if self.begins:
            unsure = recipe.checkpoint_dtype == "source" and find_gguf(recipe.policy.path) is None
            first = HALF * self.plan.work.policy.parameters if unsure else self._first
            return self.rounds * each + (not made) * first
        return (self.rounds - made) * each

    @property
    def _first(self) -> float:
        return self.plan.work.saved_bytes * self.plan.work.policy.parameters

    def time_line(self) -> str:
        """Says how long the rounds take, and what takes longest."""
        stages = {name: sum(parts.values()) for name, parts in self.plan.stages.items()}
        told = [name for name in ("sample", "judge", "update", "evaluate", "gate") if name in stages]
        longest = ", ".join(f"{name} {_short(stages[name], 's')}" for name in told)
        gate = self.plan.work.gate_answers
        budget = (
            f"; the gate samples at most {gate * self.plan.work.recipe.gate_tokens:,} tokens a round" if gate else ""
        )
        return (
            f"on paper, as on {self.plan.devices} x {self.plan.device.name}: about {_short(self.seconds, 's')} of work "
            f"for {counted(self.rounds, 'round')} of {_short(self.plan.seconds, 's')} each ({longest}){budget}"
        )

    def _stage(self, name: str) -> float:
        return sum(self.plan.stages.get(name, {}).values())

    def memory_words(self, free: float | str) -> str:
        """Says how much memory the largest part needs, of what is free of the machine or the device.

        Args:
            free: bytes, or why nobody knows.
        """
        needed = max(sum(parts.values()) for parts in self.plan.memory.values())
        if isinstance(free, str):
            return f"memory about {_short(needed, 'B')} ({free})"
        short = " (too little: lower update.token_budget or sampling.cache_gib)" if needed > free else ""
        return f"memory about {_short(needed, 'B')} of {_short(free, 'B')} free{short}"

    def disk_words(self, free: float | None) -> str:
        """Says how much the store grows by, of so many free bytes; None if nobody knows, as of a bucket."""
        short = " (may be too little)" if free is not None and self.disk > free else ""
        room = "" if free is None else f" of {_short(free, 'B')} free{short}"
        return f"disk at most about {_short(self.disk, 'B')}{room}"


def forecast(recipe: Recipe, done: int, goal: int, where: Path | None, *, made: bool = False) -> list[str]:
    """Says in at most two lines what the rounds up to ``goal`` take of this machine, or why nobody can say.

    No hub is asked: of a model there, the size is known if its configuration was fetched before. Of a GPU that the
    planner does not know, the disk alone is told.

    Args:
        done: the newest finished round; -1 if the run begins.
        where: the directory of the store; None if it is a bucket.
        made: whether the checkpoint of the next round, 0 if the run begins, is in the store already, or may be.

    Raises:
        ConfigError: the disk has less room than the weights take that the rounds have to write.
    """
    recipe = recipe.model_copy(update={"policy": with_local_config(recipe.policy)})
    gpu = None if recipe.devices.trainer == "cpu" else _Gpu.of(recipe.devices.trainer)
    try:
        plan = plan_recipe(recipe, gpu.kind if gpu else None)
    except (ConfigError, json.JSONDecodeError) as error:
        return [f"what the run will take cannot be said: {str(error).partition(': ')[0]}"]
    found = Forecast(plan, goal - max(done, 0), done < 0)
    disk = None if where is None else float(shutil.disk_usage(where).free)
    if disk is not None and (sure := found.surely_written(made=made)) > disk:
        raise ConfigError(
            f"{where} has {_short(disk, 'B')} free, and the weights of {counted(found.rounds, 'round')} of this recipe "
            f"take {_short(sure, 'B')}: make room, take another --root, fewer rounds, or an adapter (update.lora)"
        )
    if gpu is not None and gpu.kind is None:  # what a plan says of the disk is true of any device
        known = ", ".join(name for name in DEVICES if name != "cpu")
        return [
            f"what the run will take of {gpu.name} cannot be said, as its speed is not known here; 'rondo plan "
            f"--device' says what it would take of {known}",
            found.disk_words(disk),
        ]
    memory = float(psutil.virtual_memory().available) if gpu is None else gpu.free
    return [found.time_line(), f"{found.memory_words(memory)}, {found.disk_words(disk)}; 'rondo plan' says what of"]


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


@dataclass(frozen=True)
class _Gpu:
    """The trainer's GPU.

    Attributes:
        name: as its driver gives it, in quotes.
        kind: its name among ``DEVICES``; None if it is none of them.
        free: bytes of its memory that nobody uses, or why they are not known.
    """

    name: str
    kind: str | None
    free: float | str

    @classmethod
    def of(cls, device: str) -> "_Gpu":
        """Asks torch, which is imported if the recipe names a GPU, as it was asked whether there is one."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return cls("a GPU that is not here", None, _UNKNOWN)
        name = torch.cuda.get_device_name(device)
        words = re.split(r"[^a-z0-9]+", name.lower())
        try:  # by the driver's library: torch's own answer would take some of that memory until the command ends
            free = torch.cuda.get_device_properties(device).total_memory - torch.cuda.device_memory_used(device)
        except ModuleNotFoundError:
            free = f"{_UNKNOWN} without the package nvidia-ml-py, which rondo[gpu] installs"
        except Exception:  # the driver knows no such device, as a part of a GPU
            free = _UNKNOWN
        return cls(f"'{name}'", next((kind for kind in DEVICES if kind in words), None), free)


def _short(value: float, unit: str) -> str:
    return quantity(value, unit, _DIGITS)
