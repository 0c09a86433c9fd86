"""A round of smollm2-json at its smallest: a model that people know, on the real vLLM, with an adapter."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from flows.registry.round_summary import RoundSummary
from storage.log.store import Store
from storage.tables.checkpoints import local_directory
from storage.tables.shards import read_table
from support.forkserver import Done

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

# Six prompts with six answers each, as long as the recipe's own, give at least one preference: with K = 8, seven in
# eight prompts did.
SMALLEST = {
    "rounds": 1, "sampling.prompts_per_round": 6, "sampling.candidates": 6, "sampling.max_tokens": 56,
    "sampling.shard_prompts": 3, "sampling.max_sequences": 16, "sampling.cache_gib": 0.25, "update.epochs": 1,
    "update.batch_size": 2, "update.token_budget": 1024, "evaluation.prompts": 2, "prompts.train": 16,
}  # fmt: skip


def logp(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    """The log-probability of an answer, one sequence by itself, in nats."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum().item()


def test_a_round_of_smollm2_json(started_rondo: Callable[..., Done], tmp_path: Path) -> None:
    root = tmp_path / "root"
    changes = [part for name, value in SMALLEST.items() for part in ("--set", f"{name}={value}")]
    started_rondo("run", "smollm2-json", "--name", "small", "--root", str(root), *changes)
    store = Store.open(root)
    run = store.run("small")
    summary = RoundSummary.model_validate(run.round_entry(1).meta)
    assert summary.steps is not None
    assert summary.steps >= 1
    # Policy and reference are the same then, whichever engine computed the reference's log-probabilities.
    assert summary.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert summary.handover_drift < 1e-3
    assert summary.last_kl is not None

    base = AutoModelForCausalLM.from_pretrained(local_directory(store, run.files(0, "checkpoint"), tmp_path))
    rows = read_table(store, run.files(1, "probe")).to_pylist()
    before = [logp(base, row["prompt_token_ids"], row["token_ids"]) for row in rows]
    adapter = local_directory(store, run.files(1, "checkpoint"), tmp_path)
    trained = PeftModel.from_pretrained(base, adapter).eval()
    after = [logp(trained, row["prompt_token_ids"], row["token_ids"]) for row in rows]
    # Sums of up to 56 float32 log-probabilities, by other kernels and in other packs.
    assert [row["previous_logp"] for row in rows] == pytest.approx(before, abs=1e-3)
    assert [row["logp"] for row in rows] == pytest.approx(after, abs=1e-3)
    assert after != pytest.approx(before, abs=1e-3), "the adapter has learned something"
