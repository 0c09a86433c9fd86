"""A round on paper, against numbers derived by hand and against real models.

Shares are set to 1 and the host's work to 0 where a number is derived, so that only the formula is left.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.config import WarmStartPolicy
from pipeline.errors import ConfigError
from pipeline.model.checkpointing import recompute_layers
from pipeline.model.logprobs import pack_logps
from pipeline.packing.packing import Pack, TokenGroup, pack_groups
from pipeline.planning.devices import DEVICES, GIB, Fact
from pipeline.planning.memory import activation_bytes, device_memory, round_store, sampler_memory, update_memory
from pipeline.planning.plan import Plan, plan_round
from pipeline.planning.shapes import KNOWN_SHAPES, ModelShape, shape_of_config, shape_of_warm_start
from pipeline.planning.time import decode_batch, decode_step, judging, sampling, scoring, update, weight_sync
from pipeline.planning.work import Workload, workload_of
from pipeline.recipe import Recipe

LLAMA, SMALL = KNOWN_SHAPES["meta-llama/Llama-3.1-8B"], KNOWN_SHAPES["Qwen/Qwen2.5-0.5B"]
ONE, NOTHING = Fact(1, "assumed"), Fact(0, "assumed")
RAY = {"sampler": {"replicas": 1, "gpus": 1}}
"""A sampler that is no process of the trainer's machine: it reads every policy from the store."""
H100 = replace(
    DEVICES["h100"], update_share=ONE, pass_share=ONE, traffic_share=ONE, step_seconds=NOTHING, sequence_seconds=NOTHING
)
# Llama 3 8B: 32 layers of 4,096 x (2 x 4,096 + 2 x 1,024 + 3 x 14,336), and two matrices of 128,256 x 4,096.
WEIGHTS = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14_336) + 2 * 128_256 * 4096
MULTIPLIED = WEIGHTS - 128_256 * 4096


def recipe_of(**changes: Any) -> Recipe:
    """1,024 prompts of 256 tokens, 8 completions of 512, pairs, on a GPU in bfloat16."""
    sections: dict[str, Any] = {
        "name": "paper",
        "rounds": 4,
        "policy": {"source": "pretrained", "path": "owner/name"},
        "prompts": {"source": "datasets", "name": "owner/name"},
        "sampling": {
            "prompts_per_round": 1024, "candidates": 8, "max_tokens": 512, "shard_prompts": 128, "max_sequences": 256,
            "cache_gib": 64.0,
        },
        "judge": {"kind": "length", "limit": 10},
        "update": {"batch_size": 32, "token_budget": 16384, "precision": "bfloat16"},
        "evaluation": {"prompts": 256},
        "devices": {"sampler": "cuda", "trainer": "cuda", "judge": "cuda"},
    }  # fmt: skip
    for section, fields in changes.items():
        before = sections.get(section)
        sections[section] = {**before, **fields} if isinstance(before, dict) and section != "judge" else fields
    return Recipe.model_validate(sections)


def work_of(shape: ModelShape = LLAMA, judge: ModelShape | None = None, **changes: Any) -> Workload:
    return workload_of(recipe_of(**changes), shape, judge)


def planned(devices: int = 1, shape: ModelShape = LLAMA, judge: ModelShape | None = None, **changes: Any) -> Plan:
    return plan_round(work_of(shape, judge, **changes), H100, devices)


def totals(plan: Plan) -> dict[str, float]:
    return {name: sum(parts.values()) for name, parts in plan.stages.items()}


def test_every_number_has_a_source() -> None:
    for device in DEVICES.values():
        facts = [value for value in vars(device).values() if isinstance(value, float)]
        assert len(facts) > 10
        for fact in facts:
            assert isinstance(fact, Fact)
            assert fact.source.startswith(("data sheet", "measured", "assumed"))
    two = DEVICES["cpu"].with_threads(2)
    assert two.float32_flops == 2 * DEVICES["cpu"].float32_flops
    assert two.bandwidth == DEVICES["cpu"].bandwidth, "cores share one memory"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "num_hidden_layers": 3, "vocab_size": 3000, "tie_word_embeddings": False},
        {"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 32, "head_dim": 128,
         "intermediate_size": 4096, "num_hidden_layers": 2, "vocab_size": 3000, "tie_word_embeddings": True},
        {"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14_336, "num_hidden_layers": 2, "vocab_size": 3000},
        {"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
         "intermediate_size": 4864, "num_hidden_layers": 3, "vocab_size": 3000, "tie_word_embeddings": True},
        {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 3072, "num_hidden_layers": 3, "vocab_size": 3000,
         "tie_word_embeddings": True},
    ],
    ids=["llama", "llama with wide heads", "mistral", "qwen2", "qwen3"],
)  # fmt: skip
def test_weights_are_counted_as_transformers_builds_them(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    built = sum(weight.numel() for weight in model.parameters())
    # Norms and biases are left out: at these widths less than 0.1% of the weights.
    assert shape_of_config(config, "model").parameters == pytest.approx(built, rel=1e-3)


def test_published_sizes() -> None:
    # As their authors say: Llama 3 8.03 and 70.6 billion, Qwen2.5 0.494, 7.62 and 32.8, Qwen3 0.596, SmolLM2 0.135.
    billions = {name: shape.parameters / 1e9 for name, shape in KNOWN_SHAPES.items()}
    assert billions["meta-llama/Llama-3.1-8B"] == pytest.approx(8.030, abs=0.001)
    assert billions["meta-llama/Llama-3.1-70B"] == pytest.approx(70.55, abs=0.01)
    assert billions["Qwen/Qwen2.5-0.5B"] == pytest.approx(0.494, abs=0.0005)
    assert billions["Qwen/Qwen2.5-7B"] == pytest.approx(7.616, abs=0.001)
    assert billions["Qwen/Qwen2.5-32B"] == pytest.approx(32.76, abs=0.01)
    assert billions["Qwen/Qwen3-0.6B"] == pytest.approx(0.596, abs=0.0005)
    assert billions["HuggingFaceTB/SmolLM2-135M"] == pytest.approx(0.1345, abs=0.0005)


def test_a_family_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="of type 'gpt2', cannot be counted"):
        shape_of_config({"model_type": "gpt2"}, "gpt2")
    with pytest.raises(ConfigError, match="configuration of 'own' has no hidden_size"):
        shape_of_config({"model_type": "llama", "vocab_size": 512}, "own")


def test_the_warm_start_is_counted_as_it_is_built() -> None:
    config = WarmStartPolicy(source="warm_start", corpus="film_reviews", hidden_size=160, layers=2, heads=5)
    llama = LlamaConfig(
        vocab_size=512, hidden_size=160, intermediate_size=432, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=5, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(llama)
    # Five norms of 160 are left out.
    built = sum(weight.numel() for weight in model.parameters())
    assert shape_of_warm_start(config).parameters == built - 5 * 160


def test_bytes_of_a_token_in_the_cache() -> None:
    # Llama 3 8B: a key and a value, 32 layers, 8 heads of 128, 2 bytes: 2 * 32 * 8 * 128 * 2.
    assert LLAMA.kv_bytes(2) == 131_072
    # Qwen2.5 0.5B: 2 * 24 layers * 2 heads of 64 * 2.
    assert SMALL.kv_bytes(2) == 12_288


def test_a_decoding_step_reads_the_weights_once_and_the_cache_of_each_sequence() -> None:
    assert (LLAMA.parameters, LLAMA.multiplied) == (WEIGHTS, MULTIPLIED)
    work = work_of()
    # The cache holds the prompt's 16 whole blocks once for its 8 completions, so 256 / 8 + 512 = 544 tokens each:
    # 64 GiB / (544 * 131,072) = 963 sequences, more than max_sequences 256.
    assert decode_batch(work, H100, 10_000) == 256
    assert decode_batch(work, H100, 7) == 7
    # 2 bytes of each weight, and of 256 sequences a prompt of 256 and half a completion of 512 tokens, over 3.35 TB/s.
    # Two operations a weight and sequence, at 989 TFLOPS, take less.
    step = decode_step(work, H100, 256)
    assert step == {"bandwidth": pytest.approx((2 * MULTIPLIED + 256 * 512 * 131_072) / 3.35e12), "host": 0}
    assert step["bandwidth"] > 2 * MULTIPLIED * 256 / 989e12
    small = work_of(sampling={"cache_gib": 4.0})
    # 4 GiB / (544 * 131,072) = 60.2; an engine of two GPUs has a cache of as much in all.
    assert decode_batch(small, H100, 10_000) == 60
    spread = {"sampler": {"replicas": 1, "gpus": 2}}
    assert decode_batch(work_of(sampling={"cache_gib": 4.0}, cluster=spread), H100, 10_000) == 60
    assert decode_step(work_of(cluster=spread), H100, 256)["bandwidth"] == pytest.approx(step["bandwidth"] / 2)
    # With 1 ms a step and 0.1 ms a sequence of the host's.
    slow = replace(H100, step_seconds=Fact(1e-3, "assumed"), sequence_seconds=Fact(1e-4, "assumed"))
    assert decode_step(work, slow, 256)["host"] == pytest.approx(0.0266)


def test_sampling_is_steps_and_prompts() -> None:
    work = work_of()
    step = sum(decode_step(work, H100, 256).values())
    # 8,192 sequences, 256 at a time, 512 steps each; and 1,024 prompts of 256 tokens, each once for its completions.
    found = sampling(work, H100, 1)
    assert found["bandwidth"] == pytest.approx(512 * 32 * step)
    assert found["compute"] == pytest.approx(2 * MULTIPLIED * 1024 * 256 / 989e12)
    # Four engines share the prompts; each decodes a quarter, 256 at a time as well.
    assert sum(sampling(work, H100, 4).values()) == pytest.approx(sum(found.values()) / 4)
    # A prompt of 20 tokens fills one block of 16: the rest is computed for each of 8 completions, 16 + 8 * 4 = 48.
    short = workload_of(work.recipe, LLAMA, prompt_tokens=20)
    assert sampling(short, H100, 1)["compute"] == pytest.approx(2 * MULTIPLIED * 1024 * 48 / 989e12)


def test_in_float32_the_sampler_computes_as_the_update_does() -> None:
    work = work_of(sampling={"cache_gib": 4.0}, update={"precision": "float32"})
    assert sampler_memory(work, H100)["weights"] == 4 * WEIGHTS
    # Twice the 131,072 bytes of a token: 4 GiB / (544 * 262,144) = 30.1 sequences.
    assert decode_batch(work, H100, 10_000) == 30
    read = 4 * MULTIPLIED + 30 * 512 * 262_144
    assert decode_step(work, H100, 30)["bandwidth"] == pytest.approx(read / 3.35e12)
    found = sampling(work, H100, 1)
    assert found["compute"] == pytest.approx(2 * MULTIPLIED * 1024 * 256 / 67e12)
    assert found["bandwidth"] == pytest.approx(512 * 8192 / 30 * read / 3.35e12)


def test_the_update_is_six_operations_a_weight_and_token() -> None:
    work = work_of()
    # A pair is its prompt once and two completions without their last tokens: 256 + 2 * 511 = 1,278 tokens.
    assert work.preference_tokens == 1278
    found = update(work, H100, 1)
    assert found["compute"] == pytest.approx(6 * MULTIPLIED * 1024 * 1278 / 989e12)
    # On a GPU the trainer scores all completions once, and 92 preferences again at the end: 2 operations each, of which
    # 3% of 3 passes over 1,024 preferences are 92.
    assert found["scoring"] == pytest.approx(2 * MULTIPLIED * (1024 + 92) * 1278 / 989e12)
    # Weights are read and written at 1 GB/s; written beside the evaluation if the sampler has another GPU.
    assert found["store"] == pytest.approx(8 * WEIGHTS / 1e9)
    assert update(work_of(devices={"sampler": "cuda:1"}), H100, 1)["store"] == pytest.approx(4 * WEIGHTS / 1e9)
    assert found.keys() == {"compute", "scoring", "store"}
    sampled = update(work_of(update={"reference_logprobs": "sampler"}), H100, 1)
    assert sampled["scoring"] == pytest.approx(found["scoring"] * 92 / 1116)
    again = work_of(update={"gradient_checkpointing": True})
    assert update(again, H100, 1)["compute"] == pytest.approx(found["compute"] * 8 / 6)
    adapter = work_of(update={"lora": {"rank": 16}})
    assert update(adapter, H100, 1)["compute"] == pytest.approx(found["compute"] * 4 / 6)
    wide = work_of(update={"precision": "float32"})
    assert update(wide, H100, 1)["compute"] == pytest.approx(found["compute"] * 989 / 67)
    assert update(work_of(update={"epochs": 3}), H100, 1)["compute"] == pytest.approx(found["compute"] * 3)


def test_ranks_wait_for_the_one_with_most_preferences_and_send_each_other_the_weights() -> None:
    work = work_of()
    one, eight = update(work, H100, 1), update(work, H100, 8)
    assert eight["compute"] == pytest.approx(one["compute"] / 8), "sending overlaps with computing"
    # Each of 32 steps has one pass: 4 preferences on a rank, 5,112 tokens, within the budget of 16,384. In it weights
    # are gathered twice in bfloat16, and gradients summed in float32, 7/8 of each, over 450 GB/s.
    sent = 32 * 8 * WEIGHTS * 7 / 8 / 450e9
    assert sent < eight["compute"]
    slow = replace(H100, link=Fact(45e9, "assumed"))
    assert update(work, slow, 8)["links between ranks"] == pytest.approx(10 * sent)
    # 24 ranks: two of them have 2 of the 32 preferences of a step, so that all wait for 2. Beyond a node over 50 GB/s.
    fast = replace(H100, network=Fact(1e15, "assumed"))
    assert update(work, fast, 24)["compute"] == pytest.approx(one["compute"] / 16)
    assert update(work, H100, 24)["links between ranks"] == pytest.approx(32 * 8 * WEIGHTS * 23 / 24 / 50e9)


def test_a_judge_reads_prompt_and_completion() -> None:
    model = KNOWN_SHAPES["Qwen/Qwen3-0.6B"]
    work = work_of(judge=model)
    read = recipe_of(judge={"kind": "reward_model", "path": "owner/name"}).judge
    found = judging(work, H100, 2, [read], 8192)
    assert found["compute"] == pytest.approx(2 * model.multiplied * 8192 * (256 + 512) / 989e12 / 2)
    asked = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "concurrency": 4}
    held_out = {"judges": [{"kind": "length", "limit": 10}]}
    pairs = recipe_of(judge={**asked, "mode": "pairwise"}, evaluation=held_out).judge
    # 28 pairs of 8 completions in both orders: 56 requests a prompt, 7 for each completion; a second each, 4 at a time.
    assert judging(work, H100, 1, [pairs], 8192)["endpoint"] == 8192 * 7 / 4
    lists = recipe_of(judge={**asked, "mode": "listwise"}, evaluation=held_out).judge
    # Two shuffles of 8 completions.
    assert judging(work, H100, 1, [lists], 8192)["endpoint"] == 8192 * 2 / 8 / 4


def test_an_implicit_judge_is_two_passes_of_the_policy() -> None:
    work = workload_of(recipe_of(judge={"kind": "implicit"}), LLAMA)
    found = judging(work, H100, 1, [work.recipe.judge], work.answers)
    assert found["compute"] == pytest.approx(2 * 2 * MULTIPLIED * 8192 * (256 + 512) / 989e12)


def test_an_evaluation_samples_judges_and_scores_the_held_out_completions() -> None:
    work = work_of()
    # 256 completions of 768 tokens with their prompts under three policies, two of which are read at 1 GB/s.
    found = scoring(work, H100, 4)
    assert found["compute"] == pytest.approx(3 * 2 * MULTIPLIED * 256 * 768 / (4 * 989e12))
    assert found["store"] == pytest.approx(2 * 4 * WEIGHTS / 1e9)
    evaluation = planned(4).stages["evaluate"]
    # 256 sequences on four engines: 64 at a time, 512 steps; a rule reads each of them in 0.1 ms.
    assert evaluation["sample"] == pytest.approx(sum(sampling(work, H100, 4, held_out=True).values()))
    step = (2 * MULTIPLIED + 64 * 512 * 131_072) / 3.35e12
    assert evaluation["sample"] == pytest.approx(512 * step + 2 * MULTIPLIED * 64 * 256 / 989e12)
    assert evaluation["judge"] == pytest.approx(256 * 1e-4)
    assert {name: evaluation[name] for name in found} == found


def test_an_evaluation_as_served_samples_and_judges_once_more() -> None:
    """And scores nothing more; the store gets its completions too."""
    served = {"evaluation": {"prompts": 256, "serving": {}}}
    once, twice = (planned(4, **changes).stages["evaluate"] for changes in ({"evaluation": {"prompts": 256}}, served))
    assert twice == {**once, "sample": 2 * once["sample"], "judge": 2 * once["judge"]}
    assert work_of(**served).sampled_tokens == (8192 + 2 * 256) * 512
    # 8,448 completions become 8,704.
    assert round_store(work_of(**served))["tables"] == pytest.approx(round_store(work_of())["tables"] * 8704 / 8448)


def test_new_weights_are_read_and_copies_made() -> None:
    assert weight_sync(work_of(cluster=RAY), H100) == {"store": pytest.approx(4 * WEIGHTS / 1e9)}
    # Tied weights are read, written with a head of their own, and read again.
    assert weight_sync(work_of(SMALL, cluster=RAY), H100)["store"] == pytest.approx(3 * 4 * SMALL.parameters / 1e9)


def test_new_weights_come_out_of_memory_on_one_machine() -> None:
    """2 bytes each on a GPU, and 4 on a processor, or in float32; at 5 and 0.42 GB/s."""
    assert weight_sync(work_of(), H100) == {"memory": pytest.approx(2 * WEIGHTS / 5e9)}
    full = work_of(update={"precision": "float32"})
    assert weight_sync(full, H100) == {"memory": pytest.approx(4 * WEIGHTS / 5e9)}
    assert weight_sync(work_of(), DEVICES["cpu"]) == {"memory": pytest.approx(4 * WEIGHTS / 0.42e9)}
    spread = {"sampler": {"replicas": 1, "gpus": 2}}
    assert weight_sync(work_of(cluster=spread), H100).keys() == {"store"}


@pytest.mark.parametrize(
    ("lora", "device", "served"),
    [("auto", "h100", True), ("auto", "cpu", False), ("adapter", "cpu", True), ("merged", "h100", False)],
)
def test_an_adapter_that_is_served_is_all_that_a_sync_reads(lora: str, device: str, served: bool) -> None:
    """Of 41,943,040 weights in float32, against 8 billion that come out of memory: 2 bytes each on a GPU, else 4."""
    work = work_of(update={"lora": {"rank": 16}}, sampling={"lora": lora})
    kind = H100 if device == "h100" else DEVICES["cpu"]
    element, speed = (2, 5e9) if device == "h100" else (4, 0.42e9)
    expected = {"store": 4 * 41_943_040 / 1e9} if served else {"memory": element * WEIGHTS / speed}
    assert weight_sync(work, kind) == pytest.approx(expected)
    assert sampler_memory(work, kind).get("adapter", 0) == (element * 41_943_040 if served else 0)


def test_memory_that_the_trainer_lends_to_main_memory() -> None:
    """Moments of 64 GB leave those of the largest tensor, and with ``all`` the weights go while the sampler works."""
    cards = {"sampling": {"cache_gib": 4.0}}
    whole, optimizer, everything = (
        device_memory(work_of(devices={"offload": offload}, **cards), H100, 1, apart=False)
        for offload in ("none", "optimizer", "all")
    )
    assert whole["update"]["moments"] == 8 * WEIGHTS
    assert optimizer["update"]["moments"] == everything["update"]["moments"] == 8 * 128_256 * 4096
    assert {**optimizer["update"], "moments": 0} == {**whole["update"], "moments": 0}
    of_update, of_sampler = sum(optimizer["update"].values()), sum(optimizer["sampler"].values())
    assert optimizer["at once"]["update"] == max(of_update, of_sampler + 4 * WEIGHTS)
    assert everything["at once"]["update"] == max(of_update, of_sampler)
    # Each rank has its pieces alone: those of the largest tensor are more than 256 MiB for 4 ranks, and less for 64.
    spread = work_of(devices={"offload": "optimizer", "trainer_ranks": 4})
    assert update_memory(spread, H100, 4)["moments"] == 8 * 128_256 * 4096 / 4
    assert update_memory(spread, H100, 64)["moments"] == 256 * 2**20
    # A tenth of a billion weights has no tensor of 256 MiB of moments.
    small = work_of(SMALL, devices={"offload": "optimizer"}, update={"lora": {"rank": 64}})
    assert update_memory(small, H100, 1)["moments"] == min(8 * small.trained_weights, 256 * 2**20)


def test_engines_of_a_processor_add_up() -> None:
    on_cpu = {"sampler": "cpu,cpu,cpu", "trainer": "cpu"}
    three = device_memory(work_of(SMALL, devices=on_cpu), DEVICES["cpu"], 1, apart=False)
    one = device_memory(work_of(SMALL, devices={**on_cpu, "sampler": "cpu"}), DEVICES["cpu"], 1, apart=False)
    assert three["at once"]["sampler"] == 3 * one["at once"]["sampler"]


@pytest.mark.parametrize(
    ("update", "tokens", "measured"),  # MiB at the highest
    [({}, 716, 2470), ({"lora": {"rank": 16}}, 1432, 4582)],
)
def test_memory_of_an_update_on_a_processor(update: dict[str, Any], tokens: int, measured: int) -> None:
    """SmolLM2-135M in float32, pairs of 69 + 2 x 56 tokens in one pack: the peak of the process in its first step.

    There the moments come when the activations are gone, so the larger of the two counts.
    """
    settings = {"precision": "float32", "token_budget": 2048, "batch_size": 8, **update}
    work = work_of(KNOWN_SHAPES["HuggingFaceTB/SmolLM2-135M"], update=settings)
    work = replace(work, preferences=tokens // 179, preference_tokens=179.0)
    parts = update_memory(work, DEVICES["cpu"], 1)
    passes = parts["activations"] + parts.get("holes", 0.0)
    found = parts["weights"] + parts["framework"] + max(passes, parts["moments"] + parts["gradients"])
    # The holes are rounded, and a pass frees activations while it makes gradients.
    assert found == pytest.approx(measured * 2**20, rel=0.1)


def test_memory_of_an_update() -> None:
    work = work_of()
    parts = update_memory(work, H100, 1)
    assert (parts["weights"], parts["gradients"], parts["moments"]) == (4 * WEIGHTS, 4 * WEIGHTS, 8 * WEIGHTS)
    assert parts["bfloat16 copy"] == 2 * WEIGHTS
    # 2**27 logits of a chunk and their gradients in float32, the head's gradient; CUDA and its libraries.
    assert (parts["logits"], parts["framework"]) == (8 * 2**27 + 4 * 128_256 * 4096, 1.5e9)
    assert "logits" not in update_memory(work, DEVICES["cpu"], 1)
    shared = update_memory(work, H100, 8)
    assert (shared["weights"], shared["gradients"], shared["moments"]) == (WEIGHTS / 2, WEIGHTS / 2, WEIGHTS)
    # Two layers in bfloat16 and one's gradients in float32, embeddings and head with their gradients in float32.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336
    assert shared["gathered"] == 8 * layer + 8 * 2 * 128_256 * 4096
    adapter = work_of(update={"lora": {"rank": 16}})
    # All linear layers: 16 * (inputs + outputs), of attention 2 * 8,192 + 2 * 5,120, of the MLP 3 * 18,432; 32 layers.
    assert adapter.trained_weights == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18_432) == 41_943_040
    found = update_memory(adapter, H100, 1)
    assert found["weights"] == 4 * WEIGHTS + 4 * 41_943_040
    assert found["logits"] == 8 * 2**27
    assert (found["gradients"], found["moments"]) == (4 * 41_943_040, 8 * 41_943_040)
    eight = work_of(update={"optimizer": "adamw_8bit"})
    assert update_memory(eight, H100, 1)["moments"] == 2 * WEIGHTS


def test_memory_of_a_sampler() -> None:
    # Qwen2.5 0.5B is tied, and the sampler's copy has a head of its own.
    parts = sampler_memory(work_of(SMALL, sampling={"cache_gib": 4.0}), H100)
    assert parts["weights"] == 2 * (SMALL.parameters + 151_936 * 896)
    assert parts["KV cache"] == 4 * GIB
    assert parts["activations"] == 8e9, "a tenth of the GPU"
    spread = work_of(cluster={"sampler": {"replicas": 1, "gpus": 4}})
    assert sampler_memory(spread, H100)["weights"] == 2 * WEIGHTS / 4
    assert sampler_memory(spread, H100)["KV cache"] == 64 * GIB / 4


def test_parts_that_share_a_device_take_turns_on_it() -> None:
    model = KNOWN_SHAPES["Qwen/Qwen3-0.6B"]
    work = work_of(SMALL, model, sampling={"cache_gib": 4.0})
    found = device_memory(work, H100, 1, apart=False)
    sampler, update_, judge = (sum(found[part].values()) for part in ("sampler", "update", "judge"))
    # The sampler sleeps while the update runs; the float32 weights of the update stay while the sampler works.
    assert found["at once"] == {"update": max(update_, sampler + 4 * SMALL.parameters), "judge": judge}
    assert judge == 2 * model.parameters + 3e9
    # Streaming on two devices the sampler has its own; with staleness on one nothing sleeps, and on a CPU nothing can.
    assert device_memory(work, H100, 1, apart=True)["at once"] == {"update": update_, "judge": judge}
    stale = work_of(SMALL, model, staleness=1, sampling={"cache_gib": 4.0})
    everything = {"sampler": sampler, "update": update_, "judge": judge}
    assert device_memory(stale, H100, 1, apart=False)["at once"] == everything
    assert device_memory(work, DEVICES["cpu"], 1, apart=False)["at once"].keys() == everything.keys()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "widths",
    [
        {"hidden": 1024, "query": 128, "key_value": 64, "intermediate": 64},
        {"hidden": 64, "query": 2048, "key_value": 1024, "intermediate": 64},
        {"hidden": 64, "query": 64, "key_value": 64, "intermediate": 4096},
    ],
    ids=["wide", "heads", "MLP"],
)
def test_activations_are_what_autograd_saves(widths: dict[str, int], precision: Any) -> None:
    """Of shapes in which one term of the formula counts most."""
    shape = ModelShape(2, **widths, vocabulary=256)
    counted, tokens = zip(*(_saved(shape, layers, precision) for layers in (2, 4)), strict=True)
    layer = (counted[1] - counted[0]) / 2
    if precision == "bfloat16":
        layer -= 2 * shape.layer  # the copy that is counted elsewhere
    work = work_of(shape, update={"precision": precision})
    # 5%: masks and sums of attention, a few hundred bytes a token, count at so small a width.
    assert layer / tokens[0] == pytest.approx(activation_bytes(work) / shape.layers, rel=0.05)


def _model_of(shape: ModelShape, layers: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=layers, num_attention_heads=shape.query // 32, num_key_value_heads=shape.key_value // 32,
        head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def _pack() -> Pack:
    (pack,) = pack_groups([TokenGroup("a", list(range(128)), [[3] * 193, [4] * 193])], 4096)
    return pack


def _saved(shape: ModelShape, layers: int, precision: Any) -> tuple[int, int]:
    """Bytes that autograd keeps for the backward pass of a pack, each storage once, without weights; and its tokens."""
    model, pack = _model_of(shape, layers), _pack()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # alive, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pack_logps(model, pack, precision=precision)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), pack.input_ids_T.numel()


@pytest.mark.parametrize(("precision", "element"), [("float32", 4), ("bfloat16", 2)])
def test_with_checkpointing_only_the_inputs_of_layers_are_kept(precision: Any, element: int) -> None:
    whole, again = (
        work_of(update={"precision": precision, "gradient_checkpointing": given}) for given in (False, True)
    )
    # 32 layers' inputs of 4,096, and one layer computed anew.
    assert activation_bytes(again) == element * 4096 * 32 + activation_bytes(whole) / 32
    # Of a real model of 2 layers and of 4, of whatever tensor is alive after the forward pass.
    shape = ModelShape(2, 256, 256, 128, 512, vocabulary=256)
    two, four = (_alive(shape, layers, precision) for layers in (2, 4))
    assert four - two == 2 * element * 256 * _pack().input_ids_T.numel()


class _Made(TorchDispatchMode):  # type: ignore[misc]
    """Notes each storage that is made, without keeping it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, torch.Tensor):
                self.bytes[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return found


def _alive(shape: ModelShape, layers: int, precision: Any) -> int:
    """Bytes that are left of the forward pass of a pack if layers are computed again, without weights."""
    model = _model_of(shape, layers)
    recompute_layers(model)
    weights = {StorageWeakRef(weight.untyped_storage()) for weight in model.parameters()}
    with _Made() as made:
        found = pack_logps(model, _pack(), precision=precision)
    alive = sum(size for storage, size in made.bytes.items() if storage not in weights and not storage.expired())
    del found  # until here, as the graph is what keeps them
    return alive


def test_the_store_of_a_round_and_of_a_run() -> None:
    """8,192 completions and 256 held-out ones of 512 tokens."""
    found = round_store(work_of())
    assert found.keys() == {"tables", "checkpoint"}
    # A token takes 3.03 for its log-probability, at most log2(128,256) / 8 = 2.12 for its id and 1.6 for its text.
    assert found["tables"] == pytest.approx(8448 * (40 + 512 * (3.03 + math.log2(128_256) / 8 + 1.6)))
    assert found["checkpoint"] == 4 * WEIGHTS
    adapter = round_store(work_of(update={"lora": {"rank": 16}, "optimizer_state": "carried"}))
    assert (adapter["checkpoint"], adapter["moments"]) == (4 * 41_943_040, 8 * 41_943_040)
    assert round_store(work_of(update={"reference": "ema"}))["moving average"] == 4 * WEIGHTS
    # Four rounds, and the initial policy.
    assert planned().run_store == pytest.approx(4 * WEIGHTS + 4 * sum(found.values()))


@pytest.mark.parametrize(
    ("dtype", "half", "whole", "base"),  # bytes of a weight: in a round's checkpoint, and in an adapter's base
    [
        (None, True, 4, 2),
        (None, False, 4, 4),
        ("source", True, 2, 2),
        ("bfloat16", False, 2, 2),
        ("float32", True, 4, 4),
    ],
)
def test_weights_are_stored_in_the_precision_that_the_recipe_says(
    dtype: str | None, half: bool, whole: int, base: int
) -> None:
    shape = replace(LLAMA, half=half)
    policy = {"policy": {"dtype": dtype}}
    full, adapted = planned(shape=shape, **policy), planned(shape=shape, update={"lora": {"rank": 16}}, **policy)
    assert full.store["checkpoint"] == whole * WEIGHTS
    assert full.run_store == pytest.approx(whole * WEIGHTS + 4 * sum(full.store.values()))
    assert planned(shape=shape, cluster=RAY, **policy).stages["sync weights"] == {
        "store": pytest.approx(whole * WEIGHTS / 1e9)
    }
    assert adapted.store["checkpoint"] == 4 * 41_943_040
    assert adapted.run_store == pytest.approx(base * WEIGHTS + 4 * sum(adapted.store.values()))


def test_more_devices_are_never_slower_where_they_compute() -> None:
    work, ranks = work_of(update={"gradient_checkpointing": True}), [1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 64, 256]
    unlinked = replace(H100, link=Fact(1e18, "assumed"), network=Fact(1e18, "assumed"))
    computed = [update(work, unlinked, count)["compute"] for count in ranks]
    assert computed == sorted(computed, reverse=True)
    held = [sum(update_memory(work, H100, count).values()) for count in ranks if count > 1]
    assert held == sorted(held, reverse=True)
    sampled = [sum(sampling(work, H100, count).values()) for count in ranks]
    assert sampled == sorted(sampled, reverse=True)


def test_streaming_overlaps_what_phased_adds() -> None:
    judge, read = KNOWN_SHAPES["meta-llama/Llama-3.1-8B"], {"kind": "reward_model", "path": "owner/name"}
    phased = planned(8, judge=judge)
    assert phased.seconds == pytest.approx(sum(totals(phased).values()))
    # The update and the judge have as many devices as there are ranks, the sampler the other ones.
    apart: dict[str, Any] = {"mode": "streaming", "judge": read, "devices": {"trainer_ranks": 2}}

    def streamed(**changes: Any) -> tuple[Plan, dict[str, float]]:
        work = workload_of(recipe_of(**{**apart, **changes}), LLAMA, judge)
        found = plan_round(work, H100, 8)
        assert found.stages["sample"] == sampling(work, H100, 6)
        assert found.stages["update"] == update(work, H100, 2)
        return found, totals(found)

    found, seconds = streamed(update={"batch_order": "shards"})
    longest = max(seconds["sample"], seconds["judge"] + seconds["update"])
    assert found.seconds == pytest.approx(longest + seconds["sync weights"] + seconds["evaluate"])
    # In an order that is shuffled over the whole round, the update waits for the last shard.
    waits, seconds = streamed()
    judged = max(seconds["sample"], seconds["judge"])
    after = seconds["sync weights"] + seconds["evaluate"]
    assert waits.seconds == pytest.approx(judged + seconds["update"] + after)
    # So it does when replayed preferences are put beside those of the shards.
    beside, seconds = streamed(update={"batch_order": "shards"}, preferences={"replay": {"share": 0.1}})
    judged = max(seconds["sample"], seconds["judge"])
    assert beside.seconds == pytest.approx(judged + seconds["update"] + after)
    # With staleness the next round is sampled beside the update, whatever the order.
    stale, seconds = streamed(staleness=1)
    longest = max(seconds["sample"], seconds["judge"] + seconds["update"])
    assert stale.seconds == pytest.approx(longest + after)


def test_a_recipe_names_its_devices() -> None:
    assert plan_round(work_of(), H100).devices == 1
    ranks = {"devices": {"trainer_ranks": 2}, "cluster": {"sampler": {"replicas": 3, "gpus": 2}}}
    assert plan_round(work_of(**ranks), H100).devices == 6, "phased, all parts have all devices"
    assert plan_round(work_of(mode="streaming", **ranks), H100).devices == 8
    engines = {"devices": {"sampler": "cuda:1,cuda:2,cuda:3,cuda:4"}, "sampling": {"tensor_parallel": 2}}
    assert plan_round(work_of(mode="streaming", **engines), H100).devices == 5
    one = planned(1, mode="streaming")
    assert one.seconds == pytest.approx(sum(totals(one).values())), "on one device parts take turns"


def test_what_does_not_fit_is_said() -> None:
    small = {"sampling": {"cache_gib": 4.0}}
    update_, turn, cache = planned(**small).warnings
    # 16 bytes a weight and 2 of a copy: 144 GB before activations.
    assert update_.startswith("memory, update: ")
    assert "GB, and a device has 80: take more devices" in update_
    assert turn.startswith("memory, at once: ")
    assert cache == "the KV cache holds 60 sequences of 256: raise sampling.cache_gib"
    assert [warning.split(":")[0] for warning in planned(16, **small).warnings] == [
        "the KV cache holds 60 sequences of 256"
    ]
    assert any(
        said.startswith("memory, sampler: ") for said in planned(16, KNOWN_SHAPES["meta-llama/Llama-3.1-70B"]).warnings
    )
    assert not planned(1, SMALL, sampling={"cache_gib": 4.0, "max_sequences": 32}).warnings


def test_money_is_devices_and_hours() -> None:
    found = plan_round(work_of(), H100, 8, usd_per_hour=2.0)
    # Four rounds, and round 0's evaluation.
    assert found.run_seconds == pytest.approx(4 * found.seconds + totals(found)["evaluate"])
    assert found.usd == pytest.approx(8 * 2 * found.run_seconds / 3600)
    assert planned(8).usd is None


def test_measured_factors_scale_the_stages() -> None:
    measured = {"sample": 2, "update": 3, "sync weights": 4}
    plain, slow = planned(), plan_round(work_of(), H100, 1, measured=measured)
    before, after = totals(plain), totals(slow)
    assert after["sample"] == pytest.approx(2 * before["sample"])
    assert after["update"] == pytest.approx(3 * before["update"])
    assert after["sync weights"] == pytest.approx(4 * before["sync weights"])
    assert after["judge"] == pytest.approx(before["judge"])
    assert slow.stages["evaluate"]["sample"] == pytest.approx(2 * plain.stages["evaluate"]["sample"])
    assert slow.stages["evaluate"]["store"] == plain.stages["evaluate"]["store"]


def test_the_work_of_a_round() -> None:
    assert work_of().preferences == 1024
    assert work_of(preferences={"replay": {"share": 0.5}}).preferences == 2048
    assert work_of(preferences={"rule": "all_pairs"}).preferences == 1024 * 28
    assert work_of(preferences={"rule": "all_pairs", "max_pairs": 5}).preferences == 1024 * 5
    ranked = work_of(preferences={"rule": "full_ranking"}, update={"objective": "plackett_luce"})
    # The prompt once, and eight completions without their last tokens.
    assert ranked.preference_tokens == 256 + 8 * 511
    assert workload_of(recipe_of(), LLAMA, answer_tokens=300).sampled_tokens == (8192 + 256) * 300
