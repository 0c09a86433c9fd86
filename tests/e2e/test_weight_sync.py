"""Weights out of the trainer's memory, or from the store: the same run to the bit, whoever dies in between."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.log.store import Store
from support.compare import assert_same
from support.forkserver import Done, ForkServer
from support.recipes import TINY
from support.tiny import tiny_llama

Rondo = Callable[..., Done]


def sources(root: Path, name: str) -> list[str]:
    """Where the sampler took each round's weights from."""
    return [entry.meta["source"] for entry in Store.open(root).run(name).entries(stage="handover")]


def test_a_run_is_the_same_from_memory_and_from_the_store(
    forks: ForkServer, tiny_recipe: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(tiny_recipe), "--name", "read", "--root", str(tmp_path))
    done = forks.run("support.from_checkpoints", *arguments, directory=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert sources(whole, "whole") == ["checkpoint", "memory", "memory"]
    assert sources(tmp_path, "read") == ["checkpoint"] * 3
    assert_same(whole, "whole", tmp_path, "read", range(3))


@pytest.mark.parametrize(
    "kill", ["take_weights:1:asked", pytest.param("send_weights:1:asked", marks=pytest.mark.nightly)]
)
def test_whoever_dies_over_new_weights_the_run_is_the_same(
    rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path, kill: str
) -> None:
    """A new sampler reads the store. A trainer may have given all that was asked of it before it was gone."""
    rondo("run", str(tiny_recipe), "--name", "hurt", "--root", str(tmp_path), kill=kill)
    found = sources(tmp_path, "hurt")
    assert found in (["checkpoint", "checkpoint", "memory"], ["checkpoint", "memory", "memory"])
    assert found[1] == "checkpoint" or kill.startswith("send_weights")
    assert_same(whole, "whole", tmp_path, "hurt", range(3))


def test_a_run_that_is_killed_after_the_sync_goes_on_from_the_store(
    rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path
) -> None:
    done = rondo("run", str(tiny_recipe), "--name", "cut", "--root", str(tmp_path), kill="handover:1:after")
    assert done.returncode == -signal.SIGKILL
    rondo("resume", "cut", "--root", str(tmp_path))
    assert sources(tmp_path, "cut") == ["checkpoint", "memory", "memory"]
    assert_same(whole, "whole", tmp_path, "cut", range(3))


@pytest.mark.vllm
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["all weights", "adapter"])
def test_a_run_on_vllm_is_the_same_either_way(
    environment: dict[str, str], tmp_path: Path, lora: dict[str, int] | None
) -> None:
    """With tied embeddings, for which vLLM gets a head of its own either way.

    A trainer that dies when vLLM has got weights and has not ended with them costs one update, and no more.
    """
    policy = {"source": "pretrained", "path": str(tiny_llama(tmp_path / "policy", tied=True, scale=0.3))}
    recipe: dict[str, Any] = {**TINY, "policy": policy, "update": {**TINY["update"], "lora": lora}}
    recipe["prompts"] = {"source": "jsonl", "path": str(tmp_path / "prompts.jsonl")}
    recipe["judge"] = {"kind": "length", "target": 10, "unit": "characters"}
    recipe["sampling"] = {**TINY["sampling"], "engine": "vllm", "cache_gib": 0.1, "context": 64}
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "w{row} w{row % 7}"}}\n' for row in range(40)))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ways: dict[str, tuple[str, ...]] = {"sent": ("flows.cli.main",), "read": ("support.from_checkpoints",)}
    if lora is None:
        ways["hurt"] = ("support.killed", "end_sending:1:asked")
    for name, module in ways.items():
        command = [sys.executable, "-m", *module, "run", str(tmp_path / "recipe.yaml"), "--name", name]
        done = subprocess.run(
            [*command, "--root", str(tmp_path / "root")],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    root = tmp_path / "root"
    assert (sources(root, "sent"), sources(root, "read")) == (["checkpoint", "memory", "memory"], ["checkpoint"] * 3)
    assert_same(root, "sent", root, "read", range(3))
    if lora is None:
        assert sources(root, "hurt") == ["checkpoint", "checkpoint", "memory"]
        assert_same(root, "sent", root, "hurt", range(3))


def test_two_engines_take_the_weights_out_of_memory_and_do_what_one_does(
    rondo: Rondo, tiny_recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """One of them dies in round 1: the other one takes its shard, and it comes back with the store's weights.

    As long as it has no engine, both take the checkpoint, and that gives it one: by the sync of round 1 if it is back
    by then, or by that of round 2 if it is back later and has sampled nothing yet. The other of the two is from memory.
    """
    arguments = ("run", str(tiny_recipe), "--name", "two", "--root", str(tmp_path), "--set", "mode=streaming")
    done = rondo(*arguments, "--set", "devices.sampler=cpu,cpu", kill="sample:1:worker")
    first, *later = sources(tmp_path, "two")
    assert first == "checkpoint"
    assert "memory" in later
    # What they were made from differs by the devices that the recipe names.
    assert_same(whole, "whole", tmp_path, "two", range(3), costs=("seconds", "judge_usage", "origin"))
    # Who takes how many shards is a matter of speed: the one that lives may have had time for all of these few.
    said = done.stdout + done.stderr
    assert all(f"a replica has joined on cpu/{place}" in said for place in (0, 1))
    assert "has gone; 1 are left" in said
