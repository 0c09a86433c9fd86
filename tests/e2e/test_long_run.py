"""A long run: what a round costs does not grow with the rounds before it. It takes about half an hour."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import yaml

from storage.log.store import Store
from storage.objects import layout
from support.recipes import TINY

ROUNDS = int(os.environ.get("RONDO_LONG_ROUNDS", "300"))
WINDOW = ROUNDS // 6
"""Rounds of which a median is taken: at the beginning, once all is warm, and at the end."""

# Rounds as small as they can be; each saves the state of its update once, which is given up at its end, and trains an
# adapter, whose base lies further back with every round.
RECIPE: dict[str, Any] = {
    **TINY,
    "name": "long",
    "rounds": ROUNDS,
    "policy": {**TINY["policy"], "examples": 100, "steps": 5},
    "sampling": {**TINY["sampling"], "prompts_per_round": 2, "candidates": 2, "max_tokens": 4, "shard_prompts": 1},
    "judge": {"kind": "length", "target": 6, "unit": "characters"},
    "update": {
        "learning_rate": 1e-4, "batch_size": 1, "token_budget": 512, "checkpoint_steps": 1, "lora": {"rank": 2},
        "optimizer_state": "carried",
    },
    "preferences": {"replay": {"share": 0.3}},
    "evaluation": {"prompts": 2},
}  # fmt: skip
PROCESSES = ("command", "sampler", "judge", "trainer")


@dataclass(frozen=True)
class Seen:
    """The command and its workers when a round had just been finished: bytes, descriptors, processor seconds."""

    round: int
    memory: Mapping[str, int]
    files: Mapping[str, int]
    processor: Mapping[str, float]


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_a_round_costs_the_same_however_many_were_before(environment: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "flows.cli.main", "run", str(recipe), "--name", "long", "--root", str(tmp_path)]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        seen = watch(psutil.Process(process.pid), tmp_path)
        assert process.wait() == 0, (tmp_path / "output").read_text()[-5000:]
    run = Store.open(tmp_path).run("long")
    assert run.finished == list(range(ROUNDS + 1))
    early, late = slice(WINDOW, 2 * WINDOW), slice(-WINDOW, None)
    seconds, entries = seconds_of(run.rounds()), entry_bytes(tmp_path, run.rounds())
    snapshots = sizes_under(tmp_path / layout.snapshots_prefix("long"))[1:]
    report = {
        "seconds a round": (median(seconds[early]), median(seconds[late])),
        "log bytes a round": (median(entries[early]), median(entries[late])),
        "snapshot bytes a round": (median(snapshots[early]), median(snapshots[late])),
        **{f"processor seconds a round, {name}": spent(seen, name) for name in (*PROCESSES, "Prefect's server")},
        **{f"open files, {name}": at_ends(seen, "files", name) for name in PROCESSES},
        **{f"memory, {name}": at_ends(seen, "memory", name) for name in PROCESSES},
    }
    for name, (before, after) in report.items():
        sys.stdout.write(f"{name}: {before:.4g} -> {after:.4g}\n")
    # Numbers of entries have more digits, and a round more or less a preference. A snapshot also lists the numbers of
    # all files that were given up so far, of which there are two or three a round.
    assert report["log bytes a round"][1] < 1.1 * report["log bytes a round"][0]
    assert report["snapshot bytes a round"][1] < 1.1 * report["snapshot bytes a round"][0] + 3 * 8 * ROUNDS
    for name, (before, after) in report.items():
        if name.startswith("processor"):
            # Time by the clock depends on what else the machine does: five times as much has been seen. Processor time
            # does so by what others do to its caches.
            assert after < 1.5 * before + 0.1, name
        if name.startswith("open files"):
            assert after <= before + 3, name
        if name.startswith("memory"):
            # What allocators keep, and the records of the rounds in the command: 40 kB for each.
            assert after < before + 30e6 + 40e3 * ROUNDS, name


def watch(command: psutil.Process, root: Path) -> list[Seen]:
    """What each round left of the processes, until the command ends."""
    found: list[Seen] = []
    while command.is_running() and command.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.2)
        done = finished_rounds(root)
        if done and (not found or found[-1].round < done):
            memory, files, processor = measures(command)
            found.append(Seen(done, memory, files, {**processor, "Prefect's server": seconds_of_server()}))
    return found


def finished_rounds(root: Path) -> int:
    directory = root / layout.snapshots_prefix("long")
    return max((len(list(directory.iterdir())) if directory.is_dir() else 0) - 1, 0)


def measures(command: psutil.Process) -> tuple[dict[str, int], dict[str, int], dict[str, float]]:
    """Resident bytes, open descriptors and processor seconds of the command and of its workers."""
    memory, files, processor = dict[str, int](), dict[str, int](), dict[str, float]()
    for process in (command, *command.children(recursive=True)):
        try:
            words = process.cmdline()
            name = "command" if process == command else next((kind for kind in PROCESSES if kind in words), None)
            if name is not None:
                memory[name], files[name] = process.memory_info().rss, process.num_fds()
                processor[name] = sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return memory, files, processor


def seconds_of_server() -> float:
    """Processor seconds of the Prefect server, which all tests of this process share."""
    (server,) = [one for one in psutil.Process().children() if "flows.prefect_api.server" in one.cmdline()]
    return float(sum(server.cpu_times()[:2]))


def at_ends(seen: Sequence[Seen], field: str, name: str) -> tuple[float, float]:
    """Medians of what was seen at the beginning and at the end."""
    values = [getattr(one, field)[name] for one in seen if name in getattr(one, field)]
    part = len(values) // 6
    return median(values[part : 2 * part]), median(values[-part:])


def spent(seen: Sequence[Seen], name: str) -> tuple[float, float]:
    """Processor seconds a round, at the beginning and at the end."""
    known = [one for one in seen if name in one.processor]
    part = len(known) // 6
    ends = ((known[part], known[2 * part]), (known[-part], known[-1]))
    early, late = ((last.processor[name] - first.processor[name]) / (last.round - first.round) for first, last in ends)
    return early, late


def seconds_of(rounds: Sequence[Any]) -> list[float]:
    times = [datetime.fromisoformat(entry.time) for entry in rounds]
    return [(after - before).total_seconds() for before, after in pairwise(times)]


def entry_bytes(root: Path, rounds: Sequence[Any]) -> list[int]:
    """Bytes of the log's entries of each round."""
    sizes = sizes_under(root / layout.log_prefix("long"))
    return [sum(sizes[before + 1 : after + 1]) for before, after in pairwise(entry.number for entry in rounds)]


def sizes_under(directory: Path) -> list[int]:
    """Sizes of the files, whose names are numbers of equal width, in their order."""
    return [path.stat().st_size for path in sorted(directory.iterdir())]
