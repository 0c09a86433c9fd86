"""Arms that are no run of rondo: the best of N completions of the initial policy, and the PPO family by trl's trainers.

Both take initial policy and held-out prompts of a run of the experiment, and are measured beside it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.experiments.beside import Made, annex_of, measure, writing
from flows.experiments.options import BestOfOptions, PeerOptions, annex_header, options_of
from flows.experiments.planned import PARTS, Planned
from flows.host.allotment import Allotment
from flows.host.progress import Display
from flows.host.scratch import scratch_directory
from flows.registry.checkpoints import checkpoint_files, local_policy
from flows.registry.shipped_files import shipped_folder
from pipeline.data.prompts import round_slice
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.records import content_id
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.checkpoints import weights_digest
from storage.tables.shards import read_table

_PEER = shipped_folder("experiments") / "ppo_family.py"


def bring_on_method(run: Planned, root: str, display: Display) -> None:
    """Makes what is missing of an arm that is no run of rondo, and measures it.

    Raises:
        ConfigError: an option is wrong, or a package that the method needs is not installed.
    """
    options = options_of(run.variant)
    store = Store.open(root)
    anchor = store.run(run.anchor)
    annex = annex_of(store, anchor, run.name, annex_header(run.variant, run.recipe))
    numbers = run.measured_numbers
    with scratch_directory(annex.identity) as scratch, writing(annex) as writer:
        initial = local_policy(store, anchor, 0, scratch)
        inputs = content_id([annex.header, weights_digest(checkpoint_files(anchor, 0))])
        if isinstance(options, BestOfOptions):
            made = [Made(0, initial, inputs, options.samples)]
        else:
            with display.doing(f"training '{run.name}' with trl"):
                directories = _train_peer(store, anchor, run, options, initial, scratch)
            made = [Made(number, directories[number], inputs) for number in numbers]
        measure(store, anchor, annex, writer, run.recipe, made, initial, display)


def _train_peer(
    store: Store, anchor: Run, run: Planned, options: PeerOptions, initial: Path, scratch: Path
) -> Mapping[int, Path]:
    """Runs trl's trainer in a process of its own, on the prompts of the rounds that the recipe has.

    Raises:
        ConfigError: it ended with an error; the message has its last line.
    """
    recipe, to = run.recipe, scratch / "peer"
    to.mkdir()
    threads = Allotment.of(recipe).threads["trainer"]
    settings = {
        "checkpoint": str(initial), "to": str(to), "method": run.variant.spec.method, "threads": threads,
        "parts": PARTS, "options": options.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json"),
        "prompts": _prompts(store, anchor, recipe),
    }  # fmt: skip
    path = scratch / "peer.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": str(threads)}
    log = scratch / "peer.log"
    with log.open("wb") as output:
        done = subprocess.run([sys.executable, str(_PEER), str(path)], stderr=output, stdout=output, env=environment)
    if done.returncode:
        last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise ConfigError(f"arm '{run.variant.name}': {last[0]}")
    return {number: to / str(number) for number in range(1, PARTS + 1)}


def _prompts(store: Store, anchor: Run, recipe: Recipe) -> list[str]:
    """Returns the texts of the prompts of all rounds, in their order: a policy may be trained on the very same."""
    table: Any = read_table(store, tuple(anchor.files(0, "prompts")))
    texts = table["text"].to_pylist()
    count = recipe.sampling.prompts_per_round
    rows = [row for number in range(1, recipe.rounds + 1) for row in round_slice(table, number, count, recipe.seed)]
    return [texts[row] for row in rows]
