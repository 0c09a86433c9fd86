"""Our side of the benchmark of a round: runs by the command line and what their logs say, and a sampler by itself."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

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
RECIPE = REPOSITORY / "deploy" / "recipes" / "sentiment.yaml"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
}
"""Of every process that is measured."""
WORKERS = ("sampler", "judge", "trainer")


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
        peaks: largest resident memory of each of its processes, in bytes.
    """

    store: Store
    run: Run
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.run)

    def wall(self, number: int) -> float:
        """Seconds of a round, from the end of the one before to its own."""
        rounds = self.run.rounds()
        return moment(rounds[number]) - moment(rounds[number - 1])

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
        changes: to the default recipe, in all runs.
    """

    def __init__(self, root: Path, changes: Mapping[str, Any]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self._recipe = changed(yaml.safe_load(RECIPE.read_text(encoding="utf-8")), changes)
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
            with peaks_of(process.pid) as peaks:
                code = process.wait()
        if code:
            raise SystemExit(f"a run of the benchmark ended with status {code}: see {log}")
        log.unlink()
        store = Store.open(self.root)
        return Rounds(store, store.run(name), dict(peaks))


@contextlib.contextmanager
def peaks_of(pid: int) -> Iterator[dict[str, int]]:
    """While the block runs, the largest resident memory so far of a flow and of its workers, in bytes.

    The system's own high-water mark, so that nothing is missed between two looks but what comes in the last one.
    """
    peaks: dict[str, int] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                for one in (process, *process.children(recursive=True)):
                    if (name := _part(one, pid)) is not None:
                        peaks[name] = max(peaks.get(name, 0), _high_water(one.pid))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield peaks
    finally:
        ended.set()
        watching.join()


def _part(process: psutil.Process, flow: int) -> str | None:
    if process.pid == flow:
        return "flow"
    command = process.cmdline()
    return next((kind for kind in WORKERS if "flows.remote.worker_main" in command and kind in command), None)


def _high_water(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
