"""Our side of the benchmark of a round: runs by the command line and what their logs say, and a sampler by itself."""

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from benchmarks.round_processes import Usage, usage_of

from flows.host.allotment import Allotment
from flows.host.work_spans import busy_seconds, spans_of
from flows.registry.resume import recipe_of
from pipeline.data.prompts import round_slice
from pipeline.recipe import Recipe
from pipeline.records import prompt_seed
from storage.log.manifest import Entry
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.checkpoints import local_directory
from storage.tables.shards import read_table

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "deploy" / "recipes"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
}
"""Of every process that is measured."""


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with some of its fields changed, section by section; a judge is replaced as a whole."""
    result = dict(tree)
    for name, value in changes.items():
        merged = isinstance(value, Mapping) and name != "judge" and isinstance(result.get(name), Mapping)
        result[name] = changed(result[name], value) if merged else value
    return result


@dataclass(frozen=True)
class Rounds:
    """A finished run, as its log tells it.

    Attributes:
        usage: what its processes used; nothing if it was finished before.
    """

    store: Store
    run: Run
    usage: Usage = field(default_factory=Usage)

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.run)

    def wall(self, number: int) -> float:
        """Seconds of a round, from the end of the one before to its own."""
        rounds = self.run.rounds()
        return moment(rounds[number]) - moment(rounds[number - 1])

    @property
    def threads(self) -> int:
        """Those of the sampler and of the trainer."""
        found = Allotment.of(self.recipe).threads
        assert found["sampler"] == found["trainer"]
        return found["trainer"]

    def processor(self, number: int) -> dict[str, float]:
        """Seconds of the processor of a round, by process; ``wall`` says where it begins and ends."""
        rounds = self.run.rounds()
        return self.usage.processor(moment(rounds[number - 1]), moment(rounds[number]))

    def metas(self, number: int, stage: str) -> list[dict[str, Any]]:
        return [entry.meta for entry in self.run.entries(round=number, stage=stage)]

    def busy(self, number: int, *stages: str) -> float:
        """Seconds in which at least one piece of work of these stages was in progress."""
        return busy_seconds(spans_of(meta for stage in stages for meta in self.metas(number, stage)))

    def through_update(self, number: int) -> float:
        """Seconds from the first sampled shard's beginning to the checkpoint."""
        started = min(meta["span"][0] for meta in self.metas(number, "candidates"))
        return moment(self.run.entries(round=number, stage="checkpoint")[-1]) - started

    def tokens(self, number: int) -> int:
        """Tokens that were sampled for training."""
        return sum(meta["tokens"] for meta in self.metas(number, "candidates"))

    def preferences(self, number: int) -> int:
        return sum(meta["preferences"] for meta in self.metas(number, "preferences"))

    def checkpoint(self, number: int, scratch: Path) -> Path:
        """The policy that a round ended with, as a directory."""
        return local_directory(self.store, self.run.files(number, "checkpoint"), scratch)

    def prompts(self, number: int) -> list[dict[str, Any]]:
        """The prompts of a round in order: id, text, token ids, and the seed of the first candidate."""
        recipe = self.recipe
        table = read_table(self.store, self.run.files(0, "prompts"))
        rows = round_slice(table, number, recipe.sampling.prompts_per_round, recipe.seed)
        found = table.take(rows).select(["prompt_id", "text", "token_ids"]).to_pylist()
        return [{**row, "seed": prompt_seed(recipe.seed, number, row["prompt_id"])} for row in found]


def moment(entry: Entry) -> float:
    """When an entry was written, in seconds since the epoch."""
    return datetime.fromisoformat(entry.time).timestamp()


class Bench:
    """Where the benchmark's runs are kept: a root of its own, which also holds the warm start that all begin with.

    Args:
        recipe: the name of one that ships.
        changes: to it, in all runs.
    """

    def __init__(self, root: Path, recipe: str, changes: Mapping[str, Any]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self._recipe = changed(yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")), changes)
        self._stamp = time.strftime("%Y%m%d-%H%M%S")
        self._begun = 0

    def recipe(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return changed(self._recipe, changes)

    def base(self) -> Rounds:
        """A run of two rounds that is kept, for policies and prompts."""
        recipe = self.recipe({"rounds": 2})
        digest = zlib.crc32(json.dumps(recipe, sort_keys=True).encode())
        return self._execute(f"base-{digest:08x}", recipe)

    def name(self) -> str:
        """A name that no run of this root has."""
        self._begun += 1
        return f"bench-{self._stamp}-{self._begun}"

    def rounds(self, changes: Mapping[str, Any], rounds: int = 2) -> Rounds:
        """A new run of so many rounds by ``rondo run``, which begins with the warm start that is there."""
        return self._execute(self.name(), self.recipe({**changes, "rounds": rounds}))

    def _execute(self, name: str, recipe: Mapping[str, Any]) -> Rounds:
        file = self.root / "recipes" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(dict(recipe)), encoding="utf-8")
        command = [sys.executable, "-m", "flows.cli.main", "run", str(file), "--name", name, "--root", str(self.root)]
        log = self.root / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--resume"], stdout=output, stderr=output, env=ENVIRONMENT, cwd=REPOSITORY
            )
            with usage_of(process.pid) as usage:
                code = process.wait()
        if code:
            raise SystemExit(f"a run of the benchmark ended with status {code}: see {log}")
        log.unlink()
        store = Store.open(self.root)
        return Rounds(store, store.run(name), usage)
