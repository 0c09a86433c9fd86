"""A shard of a policy that thinks, through the workers of sampler and judge: what is kept, judged and measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.registry.recipes import parse_recipe
from flows.workers.judge import JudgeWorker
from flows.workers.sampler import SamplerWorker
from pipeline.config import ThoughtMarks
from pipeline.data.prompts import load_prompts
from pipeline.recipe import Recipe
from pipeline.sampling import finish
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shards import read_table, write_table
from support.committed_policy import committed_policy
from support.recipes import TINY
from support.tiny import OPENING_TEMPLATE, tiny_tokenizer

END = 9  # the id of </think>
MARKS = ThoughtMarks(begin="<think>", end="</think>")
LENGTH: dict[str, Any] = {"kind": "length", "target": 8}


def thinking_recipe(directory: Path) -> Recipe:
    path = directory / "p.jsonl"
    conversations = [[{"role": "user", "content": f"w{number}"}] for number in range(8)]
    path.write_text("".join(json.dumps({"prompt": messages}) + "\n" for messages in conversations))
    return parse_recipe({
        **TINY,
        "prompts": {"source": "jsonl", "path": str(path)},
        "sampling": {**TINY["sampling"], "prompts_per_round": 4, "candidates": 3, "context": 64, "max_tokens": 40},
        "judge": LENGTH,
        "preferences": {"drop_truncated": False},
        "evaluation": {"prompts": 4, "judges": [{**LENGTH, "name": "whole", "sees_thought": True}]},
    })  # fmt: skip


def test_a_shard_of_a_policy_that_thinks(store: Store, make_worker: Callable[..., Any], tmp_path: Path) -> None:
    recipe = thinking_recipe(tmp_path)
    sampler, judge = make_worker(SamplerWorker, recipe), make_worker(JudgeWorker, recipe)
    tokenizer = tiny_tokenizer(thinking=OPENING_TEMPLATE)
    prompts = write_table(store, "r", 0, "prompts", load_prompts(recipe.prompts, 4, 0, tokenizer))
    policy = committed_policy(store, 1, thinking=OPENING_TEMPLATE)

    def sample(rows: list[int], stage: str, held_out: bool) -> FileRef:
        turns = sampler.sample(policy, (prompts,), rows, 1, stage, 0, held_out, thought=MARKS)
        return finish(turns).file

    def judged(candidates: FileRef, stage: str, judges: list[int]) -> FileRef:
        return judge.judge((prompts,), candidates, 1, stage, 0, judges).file

    sampled, held_out = sample([0, 1, 2, 3], "candidates", False), sample([4, 5, 6, 7], "eval_candidates", True)
    trained, evaluated = judged(sampled, "judgments", [0]), judged(held_out, "eval_judgments", [0, 1])

    # The template opens each thought, and a word is a token: an answer is what comes after the first closing mark.
    rows = read_table(store, [held_out]).to_pylist()
    answers = [row["token_ids"][row["token_ids"].index(END) + 1 :] if END in row["token_ids"] else [] for row in rows]
    assert [row["answer"] is None for row in rows] == [END not in row["token_ids"] for row in rows]
    lengths = {"length": answers, "whole": [row["token_ids"] for row in rows]}
    found = read_table(store, [evaluated]).to_pylist()
    assert {row["judge"]: row["components"] for row in found}.keys() == lengths.keys()
    for name, expected in lengths.items():
        seen = [row["components"][0]["value"] for row in found if row["judge"] == name]
        assert seen == [len(ids) for ids in expected]

    metrics = judge.compare((held_out,), (evaluated,), (), (), (), (), (), ())
    total = sum(len(row["token_ids"]) for row in rows)
    assert metrics["answer_length"] == sum(map(len, answers)) / 4
    assert metrics["thought_length"] == (total - sum(map(len, answers))) / 4
    cut = [row for row in rows if row["finish_reason"] == "length"]
    assert metrics["cut_in_thought"] == sum(END not in row["token_ids"] for row in cut) / 4
    assert metrics["cut_in_answer"] == sum(END in row["token_ids"] for row in cut) / 4

    # The update has the whole completions: their tokens are counted, and so are their log-probabilities.
    built = judge.build_preferences((sampled,), (trained,), 1, 0, 0).file
    tokens = {
        (row["prompt_id"], row["candidate"]): row["token_ids"] for row in read_table(store, [sampled]).to_pylist()
    }
    kept = [row for row in read_table(store, [built]).to_pylist() if row["kind"] == "pair"]
    assert kept
    for row in kept:
        assert row["token_counts"] == [len(tokens[row["prompt_id"], index]) for index in row["candidates"]]
    assert judge.describe((sampled,), (trained,), (built,))["sampled_length"] == sum(map(len, tokens.values())) / 12
