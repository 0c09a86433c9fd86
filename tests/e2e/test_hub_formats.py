"""Two rounds on the real vLLM with everything that a GPU recipe takes from the hubs, each a small local stand-in.

A chat model with tied embeddings, a dataset of conversations by name, and a reward model.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from storage.log.store import Store
from storage.tables.checkpoints import local_directory
from support.forkserver import Done
from support.tiny import tiny_llama, tiny_tokenizer

Rondo = Callable[..., Done]
VOCABULARY = 64


def reward_model(directory: Path) -> Path:
    """A sequence classifier with one output and random weights (seed 3)."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, num_labels=1, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(3)
    LlamaForSequenceClassification(config).save_pretrained(directory)
    tiny_tokenizer(VOCABULARY, chat_template=True).save_pretrained(directory)
    return directory


def prompts(directory: Path) -> Path:
    rows = [{"prompt": [{"role": "user", "content": f"w{a} w{b} w{(a * b) % 40}"}]} for a in range(8) for b in range(8)]
    directory.mkdir()
    Dataset.from_list(rows).to_parquet(directory / "train.parquet")
    return directory


@pytest.mark.vllm
def test_two_rounds_from_the_hubs_formats(started_rondo: Rondo, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "name": "standins",
        "rounds": 2,
        "policy": {"source": "pretrained", "path": str(tiny_llama(tmp_path / "policy", tied=True, chat_template=True))},
        "prompts": {"source": "datasets", "name": str(prompts(tmp_path / "prompts"))},
        "sampling": {"prompts_per_round": 16, "candidates": 4, "max_tokens": 12, "shard_prompts": 8, "cache_gib": 0.1},
        "judge": {"kind": "reward_model", "path": str(reward_model(tmp_path / "reward"))},
        "preferences": {"rule": "full_ranking"},
        "update": {"objective": "plackett_luce", "learning_rate": 1e-3, "batch_size": 4},
        "evaluation": {"prompts": 8},
        "devices": {"cpu_threads": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    root = tmp_path / "root"
    started_rondo("run", str(path), "--root", str(root))

    rounds = json.loads(started_rondo("rounds", "standins", "--root", str(root), "--json").stdout)
    assert [summary["round"] for summary in rounds] == [0, 1, 2]
    for summary in rounds[1:]:
        assert summary["first_loss"] == pytest.approx(summary["first_loss_expected"], abs=1e-4)
        assert summary["first_loss_expected"] > math.log(2), "a ranking of more than two costs more than a pair"
        assert summary["handover_drift"] < 1e-4, "tied embeddings reload exactly, through an untied copy"
    assert rounds[2]["kl_initial"] != rounds[1]["kl_initial"]

    run = Store.open(root).run("standins")
    (checkpoint,) = run.entries(round=2, stage="checkpoint")
    directory = local_directory(Store.open(root), checkpoint.files, tmp_path / "cache")
    assert AutoModelForCausalLM.from_pretrained(directory).config.tie_word_embeddings
