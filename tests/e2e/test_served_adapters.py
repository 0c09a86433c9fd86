"""A run whose sampler, the real vLLM, serves each round's adapter: what dies is begun again, the run stays the same."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.log.store import Store
from support.compare import assert_same
from support.forkserver import Done
from support.recipes import TINY
from support.tiny import tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.nightly]
Rondo = Callable[..., Done]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tied embeddings, for which vLLM gets a base with a head of its own."""
    directory = tmp_path_factory.mktemp("recipe")
    policy = {"source": "pretrained", "path": str(tiny_llama(directory / "policy", tied=True, scale=0.3))}
    changed: dict[str, Any] = {**TINY, "policy": policy}
    changed["update"] = {**TINY["update"], "lora": {"rank": 4, "alpha": 8}}
    changed["prompts"] = {"source": "jsonl", "path": str(directory / "prompts.jsonl")}
    changed["judge"] = {"kind": "length", "target": 10, "unit": "characters"}
    changed["sampling"] = {**TINY["sampling"], "engine": "vllm", "cache_gib": 0.1, "context": 64, "lora": "adapter"}
    (directory / "prompts.jsonl").write_text("".join(f'{{"prompt": "w{row} w{row % 7}"}}\n' for row in range(40)))
    (directory / "recipe.yaml").write_text(yaml.safe_dump(changed))
    return directory / "recipe.yaml"


@pytest.fixture(scope="module")
def served(started_rondo: Rondo, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nothing interrupted."""
    root = tmp_path_factory.mktemp("served")
    started_rondo("run", str(recipe), "--name", "served", "--root", str(root))
    return root


def test_a_round_brings_its_adapter_alone(served: Path) -> None:
    run = Store.open(served).run("served")
    synced = run.entries(stage="handover")
    assert [entry.meta["source"] for entry in synced] == ["checkpoint"] * 3
    # Float32 on both sides, in another order.
    assert max(entry.meta["per_token"] for entry in synced) < 1e-4
    assert len({entry.meta["policy"] for entry in run.entries(stage="checkpoint")}) == 3, "each round has learned"


def test_an_engine_that_dies_serves_the_same_adapter_again(
    started_rondo: Rondo, recipe: Path, served: Path, tmp_path: Path
) -> None:
    started_rondo("run", str(recipe), "--name", "hurt", "--root", str(tmp_path), kill="sample:2:asked")
    assert_same(served, "served", tmp_path, "hurt", range(3))


def test_a_run_that_is_killed_after_a_sync_goes_on(
    started_rondo: Rondo, recipe: Path, served: Path, tmp_path: Path
) -> None:
    done = started_rondo("run", str(recipe), "--name", "cut", "--root", str(tmp_path), kill="handover:1:after")
    assert done.returncode == -signal.SIGKILL
    started_rondo("resume", "cut", "--root", str(tmp_path))
    assert_same(served, "served", tmp_path, "cut", range(3))


def test_a_fork_merges_what_its_parent_served(started_rondo: Rondo, served: Path) -> None:
    """And one that keeps serving it has the parent's samples in its first round, by the same seeds."""
    for lora in ("merged", "adapter"):
        changes = ("--set", f"sampling.lora={lora}", "--run", "--root", str(served))
        started_rondo("fork", "served@1", "--name", lora, *changes)
    store = Store.open(served)
    drifts = [entry.meta["per_token"] for entry in store.run("merged").entries(2, "handover")]
    assert len(drifts) == 1
    assert drifts[0] < 1e-4
    assert_same(served, "served", served, "adapter", range(3))
