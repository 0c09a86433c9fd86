"""Whole runs with what an update offers besides: adapters, other references, carried moments, checkpoints within."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.model.lora import merge
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.checkpoints import local_directory, weights_digest
from support.compare import assert_same
from support.forkserver import Done
from support.recipes import TINY
from support.tiny import tiny_tokenizer

Rondo = Callable[..., Done]


def recipe(tmp_path: Path, **update: Any) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, "update": {**TINY["update"], **update}}))
    return str(path)


def test_an_adapter_with_all_options_is_killed_within_its_update(rondo: Rondo, tmp_path: Path) -> None:
    """Killed after the first saved state of round 2, it takes only the steps after that, and ends as the whole run."""
    path = recipe(
        tmp_path, lora={"rank": 4, "alpha": 8}, learning_rate=1e-2, optimizer_state="carried", schedule="linear",
        schedule_over="run", checkpoint_steps=2, reference="initial",
    )  # fmt: skip
    rondo("run", path, "--name", "whole", "--root", str(tmp_path))
    killed = rondo("run", path, "--name", "killed", "--root", str(tmp_path), kill="update_state:2:after")
    assert killed.returncode == -9, killed.stderr
    store = Store.open(tmp_path)
    (state,) = store.run("killed").entries(round=2, stage="update_state")
    rondo("resume", "killed", "--root", str(tmp_path))
    assert_same(tmp_path, "whole", tmp_path, "killed", range(3))
    run = store.run("killed")
    states = [entry for number in (1, 2) for entry in run.entries(round=number, stage="update_state")]
    assert len(states) == 4  # after steps 2 and 4 of each round's six
    given_up = [file.path for entry in states for file in entry.files]
    assert set(given_up) <= run.dropped.keys()
    assert not any((tmp_path / path).exists() for path in given_up)
    names = [file.name for file in run.files(2, "checkpoint")]
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    first, second = (run.rounds()[number].meta for number in (1, 2))
    assert first["first_loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert second["first_loss_expected"] is None  # the reference is the initial policy, and no longer the start
    assert second["reference"] == run.rounds()[0].meta["policy"]
    assert state.key is not None
    assert state.key.shard == 2

    # A branch that goes on without an adapter begins with the merged weights, and so does its moving average.
    branch = ["fork", "whole@1", "--name", "merged", "--run", "--root", str(tmp_path), "--set", "update.lora=null"]
    refused = rondo(*branch, check=False)
    assert "the moments of an adapter are not those of whole weights" in refused.stderr
    rondo(*branch, "--set", "update.reference=ema", "--set", "update.optimizer_state=reset")
    merged = store.run("merged")
    assert merged.rounds()[2].meta["reference"] == merged.rounds()[1].meta["policy"]
    assert_average(store, tmp_path / "copies", merged)
    assert "model.safetensors" in [file.name for file in merged.files(2, "checkpoint")]
    assert merged.rounds()[2].meta["first_loss"] == pytest.approx(0.6931472, abs=1e-5)


def assert_average(store: Store, scratch: Path, run: Run) -> None:
    """The average of round 2 is 0.9 of round 1's policy, an adapter merged with its base, and 0.1 of round 2's."""
    base, adapter, policy, average = (
        local_directory(store, run.files(number, stage), scratch)
        for number, stage in ((0, "checkpoint"), (1, "checkpoint"), (2, "checkpoint"), (2, "ema"))
    )
    before, after, found = (
        load_file(place / "model.safetensors") for place in (merge(base, adapter, scratch / "merged"), policy, average)
    )
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.9 * before[name] + 0.1 * after[name])


@pytest.mark.nightly
def test_the_moving_average_is_the_reference(rondo: Rondo, tmp_path: Path) -> None:
    path = recipe(tmp_path, reference="ema", ema_decay=0.5, stop_at_margin=1e-6)
    rondo("run", path, "--name", "slow", "--root", str(tmp_path))
    run = Store.open(tmp_path).run("slow")
    first, second = (run.rounds()[number].meta for number in (1, 2))
    assert first["reference"] == run.rounds()[0].meta["policy"]
    assert second["reference"] == weights_digest(run.files(1, "ema")) != run.rounds()[1].meta["policy"]
    shown = json.loads(rondo("rounds", "slow", "--root", str(tmp_path), "--json").stdout)
    assert "reward margin" in shown[1]["stopped"]
    assert shown[1]["steps"] < 6  # of as many preferences at most, two a step


def test_rounds_beyond_the_schedule_are_refused_before_work_starts(rondo: Rondo, tmp_path: Path) -> None:
    path = recipe(tmp_path, schedule="cosine", schedule_over="run")
    rondo("run", path, "--name", "short", "--root", str(tmp_path))
    done = rondo("resume", "short", "--rounds", "3", "--root", str(tmp_path), check=False)
    assert done.returncode == 1
    assert "update.schedule_over is run, and its schedule ends with round 2" in done.stderr
    assert len(Store.open(tmp_path).run("short").rounds()) == 3


SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16,
        "num_key_value_heads": 2,
    },
}  # fmt: skip
NAMED_OTHERWISE = {
    # All weights, with an average, saved states, recomputed layers and the routers' loss.
    "mixtral": {"reference": "ema", "checkpoint_steps": 2, "gradient_checkpointing": True, "router_loss_weight": 0.1},
    "qwen3_moe": {"lora": {"rank": 4, "alpha": 8}},
    "gpt_neox": {"reference": "ema", "checkpoint_steps": 2},
}


@pytest.mark.parametrize("kind", sorted(NAMED_OTHERWISE))
def test_two_rounds_of_types_whose_files_have_other_names(kind: str, rondo: Rondo, tmp_path: Path) -> None:
    """Experts that are stacked in memory, and a head of another name, through saving, syncing, average and adapter."""
    policy = tmp_path / "policy"
    config = AutoConfig.for_model(kind, **SHAPE, **EXPERTS.get(kind, {}), tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(policy)
    tiny_tokenizer(96).save_pretrained(policy)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1} w{i + 2}"}) + "\n" for i in range(40)))
    given = {
        **TINY,
        "policy": {"source": "pretrained", "path": str(policy)},
        "prompts": {"source": "jsonl", "path": str(prompts)},
        "judge": {"kind": "length", "target": 12, "unit": "characters"},
        "evaluation": {"prompts": 4},
        "update": {**TINY["update"], **NAMED_OTHERWISE[kind]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(given))
    rondo("run", str(path), "--name", "other", "--root", str(tmp_path))
    run = Store.open(tmp_path).run("other")
    assert [entry.meta["round"] for entry in run.rounds()] == [0, 1, 2]
    first, second = (run.rounds()[number].meta for number in (1, 2))
    assert first["first_loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert second["policy"] != first["policy"]
    routed = (second["router_loss_weight"], second["last_router_loss"] is not None)
    assert routed == ((0.1, True) if kind == "mixtral" else (None, False))
    base = local_directory(Store.open(tmp_path), run.files(0, "checkpoint"), tmp_path / "copies")
    last = local_directory(Store.open(tmp_path), run.files(2, "checkpoint"), tmp_path / "copies")
    opened = AutoModelForCausalLM.from_pretrained(
        merge(base, last, tmp_path / "merged") if kind == "qwen3_moe" else last, output_loading_info=True
    )
    assert not opened[1]["missing_keys"] | opened[1]["unexpected_keys"]
