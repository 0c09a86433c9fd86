"""An experiment: a question, and the arms that answer it, which differ from one recipe in a few fields each.

The file says what is asked, what was expected and by whom, the recipe, the seeds and the arms. Each arm and seed is an
ordinary run; what arms share, as the warm start of a seed and a reward model, is made once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from flows.registry.recipes import parse_recipe, read_yaml
from flows.registry.shipped_files import find_experiment, find_recipe
from pipeline.config.base import Config
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe

Method = Literal["rondo", "best_of", "grpo", "rloo"]
REWARD_MODEL = "reward_model:"
"""How a recipe of an arm names a reward model of its experiment, in place of a directory."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._]{0,39}(-[A-Za-z0-9._]{1,20})*$"


class Arm(Config):
    """One way of training, and how it differs from the recipe."""

    label: str = Field("", max_length=60, description="what tables and pictures call it; its name if empty")
    method: Method = Field("rondo", description="what trains: rondo, nothing (best_of), or a trainer of trl")
    set: Mapping[str, JsonValue] = Field({}, description="fields of the recipe by dotted names, with other values")
    sweep: Mapping[str, tuple[JsonValue, ...]] = Field(
        {}, max_length=1, description="one more field, or option of a method, and several values: each is an arm"
    )
    same_as: str | None = Field(
        None, pattern=r"^[^/]+/[^/]+$", description="EXPERIMENT/ARM whose runs these are, so that they are run once"
    )
    options: Mapping[str, JsonValue] = Field({}, description="settings of a method that is no run of rondo")

    @model_validator(mode="after")
    def _is_one_thing(self) -> "Arm":
        if self.same_as is not None and (self.set or self.sweep or self.options or self.method != "rondo"):
            raise ValueError(f"same_as {self.same_as} is that arm as it is: leave out set, sweep, method and options")
        if self.method == "rondo" and self.options:
            raise ValueError("options are for methods that are no run of rondo: use set")
        return self


class RewardModel(Config):
    """A reward model that arms have as their judge: fitted once for each seed, to rounds of one of the sources."""

    source: str = Field(description="the source whose preferences it learns")
    rounds: str = Field("1", description="of its rounds: 1, or 1-3")
    settings: Mapping[str, JsonValue] = Field({}, description="options of rondo train-judge, such as objective")


class Experiment(Config):
    """What an experiment's file says."""

    name: str = Field(pattern=_NAME, description="name, with which the names of its runs begin")
    question: str = Field(min_length=1, description="what is asked, in a sentence")
    expected: str = Field(min_length=1, description="what was expected, with the paper")
    recipe: str = Field(description="a recipe's file, beside this one, or the name of a shipped one")
    set: Mapping[str, JsonValue] = Field({}, description="fields of the recipe that all arms have otherwise")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="seeds of runs, warm starts and reward models")
    sources: Mapping[str, Arm] = Field({}, description="runs that reward models learn from; they are not compared")
    reward_models: Mapping[str, RewardModel] = Field({}, description="reward models that arms name as judges")
    arms: Mapping[str, Arm] = Field(min_length=1, description="what is compared")
    score: str = Field(description="the judge whose score of held-out completions is drawn")
    table_judge: str = Field(description="the judge of the table of win rates, which no arm's training hears")
    against: str = Field("kl", description="what it is drawn against: kl, to the initial policy, or another judge")
    at_kl: tuple[float, ...] = Field((0.5, 1.0, 2.0, 3.0), description="KLs at which arms are compared, in nats")
    table: tuple[str, ...] = Field((), description="arms that the table of win rates has; all if empty")


@dataclass(frozen=True)
class Variant:
    """An arm with one value of its sweep.

    Attributes:
        name: ARM, or ARM-VALUE.
        arm: name of the arm that it belongs to, in the experiment that is asked for.
        home: the experiment whose runs its runs are.
        own_name: its name there.
    """

    name: str
    arm: str
    label: str
    spec: Arm
    home: "Plan"
    own_name: str
    value: JsonValue = None
    field: str | None = None

    def run(self, seed: int) -> str:
        """Returns the name of its run with a seed."""
        return f"{self.home.experiment.name}-{self.own_name}-{seed}"

    def recipe(self, seed: int, root: str) -> Recipe:
        """Returns the recipe of its run with a seed; a reward model lies in the experiment's directory of the root."""
        changes = dict(self.spec.set)
        if self.field is not None and self.spec.method == "rondo":
            changes[self.field] = self.value
        return self.home.recipe(changes, seed, root)

    @property
    def options(self) -> dict[str, JsonValue]:
        """Returns the settings of a method that is no run of rondo; its sweep is over one of them."""
        swept = {self.field: self.value} if self.field is not None else {}
        return {**self.spec.options, **swept}


@dataclass(frozen=True)
class Plan:
    """An experiment that was read, with all that it is run by."""

    experiment: Experiment
    path: Path

    @cached_property
    def base(self) -> Mapping[str, Any]:
        """Returns the fields of the recipe."""
        beside = self.path.parent / self.experiment.recipe
        path = find_recipe(beside if beside.is_file() else Path(self.experiment.recipe))
        content = read_yaml(path, f"the recipe '{path}'")
        if not isinstance(content, dict):
            raise ConfigError(f"the recipe '{path}' is not a mapping of fields to values: begin it with 'name: ...'")
        return content

    def recipe(self, changes: Mapping[str, JsonValue], seed: int, root: str) -> Recipe:
        """Returns the recipe with the experiment's fields, then those of an arm, then the seed."""
        fields = {**self.experiment.set, **changes, "seed": seed}
        if self.base.get("policy", {}).get("source") == "warm_start":
            fields["policy.seed"] = seed
        named = {name: self._placed(value, seed, root) for name, value in fields.items()}
        given = [f"{name}={json.dumps(value)}" for name, value in named.items()]
        return parse_recipe(self.base, given, f"the recipe of an arm of {self.path}", files=False)

    def reward_model(self, name: str, seed: int, root: str) -> Path:
        """Returns the directory of a reward model: beside the runs, under the names of experiment, model and seed."""
        if "://" in root:
            raise ConfigError(f"root '{root}': reward models of an experiment are local directories: give a local root")
        return Path(root) / "reward_models" / f"{self.experiment.name}-{name}-{seed}"

    def variants(self, names: Sequence[str] = ()) -> list[Variant]:
        """Returns the arms with each value of their sweeps, in the order of the file.

        Args:
            names: arms, or variants; all if empty.

        Raises:
            ConfigError: there is no such arm.
        """
        found = [one for name, arm in self.experiment.arms.items() for one in self._variants(name, arm)]
        known = {one.arm for one in found} | {one.name for one in found}
        if unknown := next((name for name in names if name not in known), None):
            raise ConfigError(f"experiment '{self.experiment.name}' has no arm '{unknown}': it has {_named(found)}")
        return [one for one in found if not names or {one.arm, one.name} & set(names)]

    def sources(self) -> list[Variant]:
        """Returns the runs that reward models learn from."""
        return [one for name, arm in self.experiment.sources.items() for one in self._variants(name, arm)]

    def _variants(self, name: str, arm: Arm) -> Iterator[Variant]:
        label = arm.label or name
        if arm.same_as is not None:
            other, _, there = arm.same_as.partition("/")
            home = read_experiment(self.path.with_name(f"{other}.yaml"))
            (same,) = home.variants([there])
            yield Variant(name, name, label, same.spec, same.home, same.own_name, same.value, same.field)
            return
        if not arm.sweep:
            yield Variant(name, name, label, arm, self, name)
        for field, values in arm.sweep.items():
            for value in values:
                full = f"{name}-{value}"
                yield Variant(full, name, label, arm, self, full, value, field)

    def _placed(self, value: Any, seed: int, root: str) -> Any:
        """Puts directories in the place of the names of reward models."""
        if isinstance(value, str) and value.startswith(REWARD_MODEL):
            name = value.removeprefix(REWARD_MODEL)
            if name not in self.experiment.reward_models:
                raise ConfigError(f"experiment '{self.experiment.name}' has no reward model '{name}': define it")
            return str(self.reward_model(name, seed, root).absolute())
        if isinstance(value, Mapping):
            return {key: self._placed(inner, seed, root) for key, inner in value.items()}
        return [self._placed(inner, seed, root) for inner in value] if isinstance(value, list | tuple) else value


def read_experiment(source: Path) -> Plan:
    """Reads an experiment's file: a path, or the name of one that rondo brings along.

    Raises:
        ConfigError: there is none, or a field is wrong.
    """
    path = find_experiment(source)
    content = read_yaml(path, f"the experiment '{path}'")
    if not isinstance(content, dict):
        raise ConfigError(f"the experiment '{path}' is not a mapping of fields to values: begin it with 'name: ...'")
    try:
        return Plan(Experiment.model_validate(content), path)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {_message(fault)}" for fault in error.errors())
        raise ConfigError(f"the experiment '{path}' cannot be run: {'; '.join(faults)}") from None


def _message(fault: Any) -> str:
    message: str = fault["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _named(found: Sequence[Variant]) -> str:
    return ", ".join(dict.fromkeys(one.arm for one in found))
