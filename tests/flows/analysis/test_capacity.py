"""A recipe's round on paper: the sizes that are found, and plans with the speeds that a run measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.analysis.capacity import plan_recipe
from flows.registry.recipes import load_recipe
from flows.registry.resume import header
from flows.run.fork_history import import_parent_rounds
from pipeline.errors import ConfigError
from pipeline.planning.shapes import KNOWN_SHAPES
from pipeline.recipe import Recipe
from storage.log.manifest import Key
from storage.log.store import Store
from storage.log.writer import Writer
from storage.retention.prune import create_fork
from support.finished_run import finished_run, small_recipe

GPU_RECIPE = Path(__file__).parents[3] / "deploy" / "recipes" / "qwen2.5-0.5b-gpu.yaml"
POLICY = {"source": "pretrained", "path": "Qwen/Qwen2.5-0.5B"}
ONE_THREAD = {"cpu_threads": 1}


def gpu_recipe(*changes: str) -> Recipe:
    return load_recipe(GPU_RECIPE, changes)


def test_sizes_and_devices_follow_from_the_recipe() -> None:
    plan = plan_recipe(gpu_recipe())
    assert plan.work.policy == KNOWN_SHAPES["Qwen/Qwen2.5-0.5B"]
    assert plan.work.judge == KNOWN_SHAPES["Qwen/Qwen3-0.6B"]
    assert (plan.device.name, plan.devices) == ("h100", 1)
    large = plan_recipe(gpu_recipe("policy.path=meta-llama/Llama-3.1-70B", "mode=streaming"), "h200", 64)
    assert large.work.policy == KNOWN_SHAPES["meta-llama/Llama-3.1-70B"]
    assert (large.device.name, large.devices) == ("h200", 64)
    assert (
        plan_recipe(gpu_recipe("policy.path=meta-llama/Llama-3.1-8B-Instruct")).work.policy
        == KNOWN_SHAPES["meta-llama/Llama-3.1-8B"]
    )
    short = plan_recipe(gpu_recipe(), prompt_tokens=50, answer_tokens=100)
    assert (short.work.prompt_tokens, short.work.answer_tokens) == (50, 100)
    threads = plan_recipe(small_recipe(policy=POLICY, devices={"cpu_threads": 2}))
    one = plan_recipe(small_recipe(policy=POLICY, devices=ONE_THREAD))
    assert threads.device.float32_flops == 2 * one.device.float32_flops


@pytest.mark.parametrize("part", ["update", "sampling"])
def test_a_processor_in_bfloat16_scores_what_it_takes_from_the_sampler_in_float32(part: str) -> None:
    """Two engines differ by more than the tolerance if one of them computes in bfloat16."""
    counts = {"prompts_per_round": 3, "candidates": 4}
    halves = {"sampling": counts, part: {**(counts if part == "sampling" else {}), "precision": "bfloat16"}}
    exact, half = (
        plan_recipe(small_recipe(policy=POLICY, devices=ONE_THREAD, **given)).stages
        for given in ({"sampling": counts}, halves)
    )
    # In the end 8 preferences are scored, and now the round's 3 before; held-out answers under all three policies.
    assert half["update"]["scoring"] == pytest.approx(exact["update"]["scoring"] * 11 / 8)
    assert half["evaluate"]["compute"] == pytest.approx(exact["evaluate"]["compute"] * 3 / 2)


def test_a_local_policy_is_counted_by_its_configuration(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96,
        "num_hidden_layers": 2, "vocab_size": 300,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Two matrices of 300 by 64, two layers of four matrices of 64 by 64 and three of 64 by 96.
    expected = 2 * 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 96)
    assert plan_recipe(gpu_recipe(f"policy.path={tmp_path}")).work.policy.parameters == expected


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root with a run of three rounds that say what they took.

    Each round sampled 1,000 tokens in 2 s, judged for 3 s, synced the weights in 0.1 s, and updated on 100 tokens in
    6 s, of which the steps took 5. Its 12 completions had 120 tokens.
    """
    root = tmp_path_factory.mktemp("measured")

    def also(writer: Writer, number: int) -> None:
        if number:
            writer.commit(Key(number, "candidates", 0, "counted"), [], {"candidates": 12, "tokens": 120})
            writer.commit(Key(number, "checkpoint"), [], {"seconds": 5.0})

    seconds = {"sample": 2.0, "judge": 3.0, "hand over": 0.1, "update": 6.0}
    finished_run(Store.open(root), recipe=small_recipe(policy=POLICY, devices=ONE_THREAD), also=also, seconds=seconds)
    return str(root)


def test_a_calibrated_plan_gives_what_was_measured(measured: str) -> None:
    recipe = small_recipe(policy=POLICY, devices=ONE_THREAD)
    plan = plan_recipe(recipe, calibrate="small@2", root=measured)
    # 12 completions and 5 held-out ones of 10 tokens, at 500 tokens/s; 3 preferences as in round 2, of 100 tokens.
    assert (plan.work.answer_tokens, plan.work.prompt_tokens, plan.work.preferences) == (10, 2, 3)
    seconds = {name: sum(parts.values()) for name, parts in plan.stages.items()}
    evaluation = plan.stages["evaluate"]
    assert seconds["sample"] + evaluation["sample"] == pytest.approx(170 / 500)
    assert seconds["judge"] + evaluation["judge"] == pytest.approx(3.0)
    assert plan.stages["update"]["compute"] == pytest.approx(5.0)
    assert seconds["sync weights"] == pytest.approx(0.1)
    assert plan.measured.keys() == {"sample", "judge", "update", "sync weights"}
    assert sum(plan_recipe(recipe).stages["sync weights"].values()) > 1
    # Twice the prompts in as large batches: twice the preferences at the same speed.
    changes: dict[str, Any] = {"sampling": {"prompts_per_round": 6, "candidates": 4}, "update": {"batch_size": 3}}
    twice = plan_recipe(small_recipe(policy=POLICY, devices=ONE_THREAD, **changes), calibrate="small@2", root=measured)
    assert twice.work.preferences == 6
    assert twice.stages["update"]["compute"] == pytest.approx(10.0)


def test_the_threads_are_those_of_the_session_that_ran_the_round(measured: str) -> None:
    """Round 2 had one thread, as its recipe says; a later session with four, and a fork with two, change nothing."""
    store, recipe = Store.open(measured), small_recipe(policy=POLICY, devices=ONE_THREAD)
    before = plan_recipe(recipe, calibrate="small@2", root=measured)
    allotment = {"threads": {"sampler": 4, "trainer": 4, "judge": 4}, "precision": "float32"}
    with store.run("small").writer(meta={"allotment": allotment}):
        pass
    assert plan_recipe(recipe, calibrate="small@2", root=measured).measured == before.measured
    parent = store.run("small")
    fork = create_fork(store, parent, 2, "fork", header(small_recipe(policy=POLICY, devices={"cpu_threads": 2})), [])
    with fork.writer(meta={"allotment": allotment}) as writer:
        import_parent_rounds(store, fork, writer)
    assert plan_recipe(recipe, calibrate="fork@2", root=measured).measured == before.measured


def test_speeds_of_one_thread_are_those_of_one_thread(measured: str) -> None:
    one = plan_recipe(small_recipe(policy=POLICY, devices=ONE_THREAD), calibrate="small@2", root=measured)
    two = plan_recipe(small_recipe(policy=POLICY, devices={"cpu_threads": 2}), calibrate="small@2", root=measured)
    assert two.measured == one.measured
    assert two.stages["update"]["compute"] == pytest.approx(2.5)


def test_lengths_are_given_or_measured(measured: str) -> None:
    with pytest.raises(ConfigError, match="takes that round's lengths"):
        plan_recipe(small_recipe(policy=POLICY), answer_tokens=10, calibrate="small@2", root=measured)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("small@0", {}),
        ("small@1", {"policy": {"source": "pretrained", "path": "Qwen/Qwen3-8B"}}),
        ("small@1", {"devices": {"sampler": "cuda", "trainer": "cuda"}}),
    ],
    ids=["round 0", "another policy", "another device"],
)
def test_a_round_that_says_nothing_of_the_plan_is_refused(measured: str, source: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="name a round from 1 on of a run of this policy"):
        plan_recipe(small_recipe(**{"policy": POLICY, **changes}), calibrate=source, root=measured)
