"""A round of a policy that thinks, on the real vLLM: its template has a switch, and judges see what it answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.log.store import Store
from storage.tables.shards import read_table
from support.forkserver import Done
from support.tiny import THINKING_TEMPLATE, tiny_llama

Rondo = Callable[..., Done]
SWITCHED = THINKING_TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking %}<think> {% endif %}"
)
"""Closes an empty thought if it is told not to think, and opens one if it is told to."""
END = 9  # the id of </think>


@pytest.mark.vllm
@pytest.mark.nightly
def test_a_round_of_a_policy_that_thinks(started_rondo: Rondo, tmp_path: Path) -> None:
    """Words are tokens, of which there are 24: about half of the completions end their thought before their answer."""
    path = tmp_path / "prompts.jsonl"
    conversations = [[{"role": "user", "content": f"w{a} w{b}"}] for a in range(6) for b in range(4)]
    path.write_text("".join(json.dumps({"prompt": messages}) + "\n" for messages in conversations))
    policy = tiny_llama(tmp_path / "policy", vocab=24, tied=True, thinking=SWITCHED)
    length: dict[str, Any] = {"kind": "length", "target": 8, "unit": "tokens"}
    recipe: dict[str, Any] = {
        "name": "thinking",
        "rounds": 1,
        "policy": {"source": "pretrained", "path": str(policy)},
        "prompts": {"source": "jsonl", "path": str(path), "chat_template_kwargs": {"enable_thinking": True}},
        "sampling": {
            "prompts_per_round": 12, "candidates": 4, "max_tokens": 24, "shard_prompts": 6, "cache_gib": 0.1,
            "alarm_truncated": 1.0,
        },
        "judge": length,
        "preferences": {"drop_truncated": False},
        "update": {"learning_rate": 1e-3, "batch_size": 4},
        "evaluation": {"prompts": 8, "judges": [{**length, "name": "whole", "sees_thought": True}]},
        "devices": {"cpu_threads": 1},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    root = tmp_path / "root"
    started_rondo("run", str(tmp_path / "recipe.yaml"), "--root", str(root))

    store = Store.open(root)
    run = store.run("thinking")
    _, last = (entry.meta for entry in run.rounds())
    assert last["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert last["handover_drift"] < 1e-4
    prompts = read_table(store, run.files(0, "prompts")).to_pylist()
    assert all(row["text"].endswith("<s> assistant : <think> ") for row in prompts), "the switch reached the template"

    rows = read_table(store, run.files(1, "eval_candidates")).to_pylist()
    answers = [row["token_ids"][row["token_ids"].index(END) + 1 :] if END in row["token_ids"] else [] for row in rows]
    assert [row["answer"] is None for row in rows] == [END not in row["token_ids"] for row in rows]
    assert any(answers), "some end their thought"
    judged = read_table(store, run.files(1, "eval_judgments")).to_pylist()
    wholes = [row["token_ids"] for row in rows]
    for name, expected in (("length", answers), ("whole", wholes)):
        seen = [row["components"][0]["value"] for row in judged if row["judge"] == name]
        assert seen == [len(ids) for ids in expected]
    assert last["answer_length"] == pytest.approx(sum(map(len, answers)) / len(rows))
    assert last["thought_length"] + last["answer_length"] == pytest.approx(sum(map(len, wholes)) / len(rows))
