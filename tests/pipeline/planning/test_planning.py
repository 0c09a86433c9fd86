"""A round on paper, against numbers derived by hand and against real models.

Efficiencies are set to 1 where a number is derived, so that only the formula is left.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.config import LoraConfig, Recipe, WarmStartPolicy
from pipeline.errors import ConfigError
from pipeline.model.logprobs import pack_logps
from pipeline.packing.packing import TokenGroup, pack_groups
from pipeline.planning import (
    ASSUMED,
    DEVICES,
    KNOWN_SHAPES,
    Factors,
    ModelShape,
    Plan,
    Split,
    plan_round,
    shape_of_config,
    shape_of_warm_start,
    workload_of,
)
from pipeline.planning.constants import GIB
from pipeline.planning.disk import checkpoint_bytes, round_bytes, run_bytes
from pipeline.planning.memory import activation_bytes, sampler_memory, update_memory
from pipeline.planning.shapes import known_shape, shape_by_numbers
from pipeline.planning.stages import pipelined
from pipeline.planning.timing import (
    decoding,
    judge_seconds,
    optimizer_steps,
    sample_seconds,
    score_seconds,
    update_seconds,
)

LLAMA, SMALL = KNOWN_SHAPES["llama-3-8b"], KNOWN_SHAPES["qwen2.5-0.5b"]
H100 = DEVICES["h100"]
PERFECT = replace(
    ASSUMED, update_efficiency=1, prefill_efficiency=1, decode_efficiency=1, bandwidth_efficiency=1, link_efficiency=1,
    step_seconds=0, sequence_seconds=0, reduce_seconds=0, update_step_seconds=0,
)  # fmt: skip


def recipe_of(**changes: Any) -> Recipe:
    """1,024 prompts of 256 tokens, 8 answers of 512, pairs, on a GPU in bfloat16."""
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


def planned(recipe: Recipe, gpus: int = 1, shape: ModelShape = LLAMA, **more: Any) -> Plan:
    return plan_round(recipe, shape, H100, gpus, workload_of(recipe), **more)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
         "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 300, "tie_word_embeddings": False},
        {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
         "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300, "tie_word_embeddings": True,
         "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4,
         "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 300},
        {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 300, "tie_word_embeddings": True},
        {"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 300, "tie_word_embeddings": True},
    ],
    ids=["llama", "llama with biases", "mistral", "qwen2", "qwen3"],
)  # fmt: skip
def test_weights_are_counted_as_transformers_builds_them(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert shape_of_config(config, "tiny").parameters == sum(weight.numel() for weight in model.parameters())


def test_published_sizes() -> None:
    # As their authors say: Llama 3 8.03 and 70.6 billion, Qwen2.5 0.494, 7.62 and 32.8, Qwen3 0.596 and 8.19.
    billions = {name: shape.parameters / 1e9 for name, shape in KNOWN_SHAPES.items()}
    assert billions["llama-3-8b"] == pytest.approx(8.030, abs=0.001)
    assert billions["llama-3-70b"] == pytest.approx(70.55, abs=0.01)
    assert billions["qwen2.5-0.5b"] == pytest.approx(0.494, abs=0.0005)
    assert billions["qwen2.5-7b"] == pytest.approx(7.616, abs=0.001)
    assert billions["qwen2.5-32b"] == pytest.approx(32.76, abs=0.01)
    assert billions["qwen3-0.6b"] == pytest.approx(0.596, abs=0.0005)
    assert known_shape("Qwen/Qwen2.5-7B-Instruct") == KNOWN_SHAPES["qwen2.5-7b"]
    assert known_shape("meta-llama/Llama-3.1-8B") == LLAMA
    assert known_shape("owner/other") is None


def test_a_size_in_numbers_has_as_many_weights() -> None:
    shape = shape_by_numbers(8.03e9, 32, 4096)
    assert shape.parameters == 8_030_000_000
    # Llama's keys are a quarter as wide as its queries, and its vocabulary is the default: its MLP is found again.
    assert shape.intermediate == pytest.approx(LLAMA.intermediate, rel=0.001)
    with pytest.raises(ConfigError, match="leave nothing for the MLP"):
        shape_by_numbers(1e8, 32, 4096)
    with pytest.raises(ConfigError, match="of type 'gpt2', cannot be counted"):
        shape_of_config({"model_type": "gpt2"}, "gpt2")
    with pytest.raises(ConfigError, match="'odd' has no field 'hidden_size'"):
        shape_of_config({"model_type": "llama"}, "odd")


def test_the_warm_start_is_counted_as_it_is_built() -> None:
    config = WarmStartPolicy(source="warm_start", corpus="film_reviews", hidden_size=160, layers=2, heads=5)
    llama = LlamaConfig(
        vocab_size=512, hidden_size=160, intermediate_size=432, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=5, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(llama)
    assert shape_of_warm_start(config).parameters == sum(weight.numel() for weight in model.parameters())


def test_bytes_of_a_token_in_the_cache() -> None:
    # Llama 3 8B: a key and a value, 32 layers, 8 heads of 128, 2 bytes: 2 * 32 * 8 * 128 * 2.
    assert LLAMA.kv_bytes(2) == 131_072
    # Qwen2.5 0.5B: 2 * 24 layers * 2 heads of 64 * 2.
    assert SMALL.kv_bytes(2) == 12_288


def test_a_decoding_step_reads_the_weights_once_and_the_cache_of_each_sequence() -> None:
    recipe = recipe_of()
    work = workload_of(recipe)
    found = decoding(LLAMA, recipe, work, H100, 1, 10_000, PERFECT)
    # The cache holds the prompt's 16 whole blocks once for its 8 candidates, so 256 / 8 + 512 = 544 tokens each:
    # 64 GiB / (544 * 131,072) = 963 sequences, more than max_sequences 256.
    assert (found.batch, found.limit) == (256, "max_sequences")
    # 7,504,924,672 weights without the embeddings (8,030,261,248 - 128,256 * 4,096), 2 bytes each, and of 256 sequences
    # a prompt of 256 and half an answer of 512 tokens, over 3.35 TB/s.
    weights = 8_030_261_248 - 128_256 * 4096
    assert found.parts["bandwidth"] == pytest.approx((2 * weights + 256 * 512 * 131_072) / 3.35e12)
    # Two operations a weight and sequence, at 989 TFLOPS: less than that.
    assert found.parts["compute"] == pytest.approx(2 * weights * 256 / 989e12)
    assert found.step == pytest.approx(found.parts["bandwidth"])
    assert found.bound == "bandwidth"
    small = recipe_of(sampling={"cache_gib": 4.0})
    # 4 GiB / (544 * 131,072) = 60.2.
    assert decoding(LLAMA, small, work, H100, 1, 10_000, PERFECT).batch == 60
    assert decoding(LLAMA, small, work, H100, 2, 10_000, PERFECT).batch == 120
    assert decoding(LLAMA, recipe, work, H100, 1, 7, PERFECT).limit == "sequences"


def test_sampling_is_steps_and_prompts() -> None:
    recipe = recipe_of()
    work = workload_of(recipe)
    step = decoding(LLAMA, recipe, work, H100, 1, 8192, PERFECT).step
    # 8,192 sequences, 256 at a time, 512 steps each; and 1,024 prompts of 256 tokens, each once for its candidates.
    prefill = 2 * LLAMA.multiplied * 1024 * 256 / 989e12
    found = sample_seconds(LLAMA, recipe, work, H100, engines=1, group=1, assumed=PERFECT)
    assert found == pytest.approx(512 * 32 * step + prefill)
    # Four engines share the prompts; each decodes a quarter, 256 at a time as well.
    assert sample_seconds(LLAMA, recipe, work, H100, engines=4, group=1, assumed=PERFECT) == pytest.approx(found / 4)
    # A prompt of 20 tokens fills one block of 16: the rest is computed for each of 8 candidates, 16 + 8 * 4 = 48.
    short = workload_of(recipe, prompt_tokens=20)
    step = decoding(LLAMA, recipe, short, H100, 1, 8192, PERFECT).step
    found = sample_seconds(LLAMA, recipe, short, H100, engines=1, group=1, assumed=PERFECT)
    assert found == pytest.approx(512 * 32 * step + 2 * LLAMA.multiplied * 1024 * 48 / 989e12)


def test_in_float32_the_sampler_computes_as_the_update_does() -> None:
    recipe = recipe_of(sampling={"cache_gib": 4.0}, update={"precision": "float32"})
    work = workload_of(recipe)
    assert sampler_memory(LLAMA, recipe, H100, 1).parts["weights"] == 4 * 8_030_261_248
    # Twice the 131,072 bytes of a token: 4 GiB / (544 * 262,144) = 30.1 sequences.
    found = decoding(LLAMA, recipe, work, H100, 1, 10_000, PERFECT)
    assert found.batch == 30
    assert found.parts["compute"] == pytest.approx(2 * LLAMA.multiplied * 30 / 67e12)
    prefill = 2 * LLAMA.multiplied * 1024 * 256 / 67e12
    seconds = sample_seconds(LLAMA, recipe, work, H100, engines=1, group=1, assumed=PERFECT)
    assert seconds == pytest.approx(512 * 8192 / 30 * found.step + prefill)


def test_the_update_is_six_operations_a_weight_and_token() -> None:
    recipe = recipe_of()
    work = workload_of(recipe)
    # A pair is its prompt once and two answers without their last tokens: 256 + 2 * 511 = 1,278 tokens; 32 steps of 32.
    assert work.preference_tokens == 1278
    assert optimizer_steps(recipe, work) == 32
    found = update_seconds(LLAMA, recipe, work, H100, 1, PERFECT)
    assert found.compute == pytest.approx(6 * LLAMA.multiplied * 1024 * 1278 / 989e12)
    assert found.communication == 0
    # On a GPU the trainer scores all answers once, and 128 preferences again at the end: 2 operations each.
    assert found.reference == pytest.approx(2 * LLAMA.multiplied * (1024 + 128) * 1278 / 989e12)
    # AdamW reads or writes 9 float32 numbers a weight in each of 32 steps. Weights are read and written at 1 GB/s.
    assert found.optimizer == pytest.approx(32 * 36 * LLAMA.parameters / 3.35e12)
    moved = 8 * LLAMA.parameters / 1e9
    assert found.total == pytest.approx(found.compute + found.optimizer + found.reference + moved)
    again = recipe_of(update={"gradient_checkpointing": True})
    assert update_seconds(LLAMA, again, work, H100, 1, PERFECT).compute == pytest.approx(found.compute * 8 / 6)
    adapter = recipe_of(update={"lora": {"rank": 16}})
    assert update_seconds(LLAMA, adapter, work, H100, 1, PERFECT).compute == pytest.approx(found.compute * 4 / 6)
    wide = recipe_of(update={"precision": "float32"})
    assert update_seconds(LLAMA, wide, work, H100, 1, PERFECT).compute == pytest.approx(found.compute * 989 / 67)


def test_ranks_wait_for_the_one_with_most_preferences_and_send_each_other_the_weights() -> None:
    recipe = recipe_of()
    work = workload_of(recipe)
    one, eight, more = (update_seconds(LLAMA, recipe, work, H100, ranks, PERFECT) for ranks in (1, 8, 24))
    assert eight.compute == pytest.approx(one.compute / 8)
    # 24 ranks: two of them have 2 of the 32 preferences of a step, so that all wait for 2.
    assert more.compute == pytest.approx(one.compute / 16)
    # Each of 32 steps has one pass: 4 preferences on a rank, 5,112 tokens, within the budget of 16,384. In it weights
    # are gathered twice in bfloat16, and gradients summed in float32, 7/8 of each, over 450 GB/s.
    assert eight.communication == pytest.approx(32 * 8 * LLAMA.parameters * 7 / 8 / 450e9)
    assert eight.steps == max(eight.compute, eight.communication) + eight.optimizer, "sending overlaps with computing"
    # Beyond a node over 50 GB/s.
    assert more.communication == pytest.approx(32 * 8 * LLAMA.parameters * 23 / 24 / 50e9)


def test_a_judge_reads_prompt_and_answer() -> None:
    recipe = recipe_of(judge={"kind": "reward_model", "path": "owner/name"})
    work = workload_of(recipe)
    model = KNOWN_SHAPES["qwen3-0.6b"]
    found = judge_seconds(work.judging, work.answers, work, model, LLAMA, H100, 2, PERFECT)
    assert found == pytest.approx(2 * model.multiplied * 8192 * (256 + 512) / 989e12 / 2)
    asked = recipe_of(
        judge={"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "mode": "pairwise", "concurrency": 4},
        evaluation={"judges": [{"kind": "length", "limit": 10}]},
    )
    work = workload_of(asked)
    # 28 pairs of 8 answers in both orders: 56 requests a prompt, 7 for each answer; a second each, 4 at a time.
    assert judge_seconds(work.judging, work.answers, work, None, LLAMA, H100, 1, PERFECT) == 8192 * 7 / 4


def test_an_implicit_judge_is_two_passes_of_the_policy() -> None:
    work = workload_of(recipe_of(judge={"kind": "implicit"}))
    found = judge_seconds(work.judging, work.answers, work, None, LLAMA, H100, 1, PERFECT)
    assert found == pytest.approx(2 * 2 * LLAMA.multiplied * 8192 * (256 + 512) / 989e12)


def test_an_evaluation_samples_judges_and_scores_the_held_out_answers() -> None:
    recipe = recipe_of(sampling={"cache_gib": 32.0})  # so that one GPU holds an engine
    work = workload_of(recipe)
    # 256 answers of 768 tokens with their prompts under three policies, two of which are read from the store at 1 GB/s.
    scored = 3 * 2 * LLAMA.multiplied * 256 * 768 / (4 * 989e12) + 2 * 4 * LLAMA.parameters / 1e9
    assert score_seconds(LLAMA, recipe, work, H100, 4, PERFECT) == pytest.approx(scored)
    sampled = sample_seconds(LLAMA, recipe, work, H100, engines=4, group=1, held_out=True, assumed=PERFECT)
    judged = 256 * PERFECT.rule_seconds
    (found,) = (stage for stage in planned(recipe, 4, assumed=PERFECT).stages if stage.name == "evaluate")
    assert found.seconds == pytest.approx(sampled + judged + scored)


def test_memory_of_an_update() -> None:
    recipe = recipe_of()
    work = workload_of(recipe)
    parts = update_memory(LLAMA, recipe, work, H100, 1).parts
    count = 8_030_261_248
    assert (parts["weights"], parts["gradients"], parts["moments"]) == (4 * count, 4 * count, 8 * count)
    assert parts["bfloat16 copy"] == 2 * count
    # 2**27 logits of a chunk and their gradients in float32, the head's gradient; CUDA and its libraries.
    assert (parts["logits"], parts["framework"]) == (8 * 2**27 + 4 * 128_256 * 4096, 1.5e9)
    on_cpu = update_memory(LLAMA, recipe, work, DEVICES["cpu"], 1).parts
    assert not {"logits", "framework"} & on_cpu.keys()
    shared = update_memory(LLAMA, recipe, work, H100, 8).parts
    assert (shared["weights"], shared["gradients"], shared["moments"]) == (count / 2, count / 2, count)
    # Two layers in bfloat16 and one's gradients in float32, embeddings and head with their gradients in float32.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096
    assert shared["gathered"] == 8 * layer + 8 * (2 * 128_256 * 4096 + 4096)
    adapter = recipe_of(update={"lora": {"rank": 16}})
    # All linear layers: 16 * (inputs + outputs), of attention 2 * 8,192 + 2 * 5,120, of the MLP 3 * 18,432; 32 layers.
    assert LLAMA.lora_parameters(LoraConfig(rank=16)) == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18_432) == 41_943_040
    found = update_memory(LLAMA, adapter, work, H100, 1).parts
    assert found["weights"] == 4 * count + 4 * 41_943_040
    assert found["logits"] == 8 * 2**27
    assert (found["gradients"], found["moments"]) == (4 * 41_943_040, 8 * 41_943_040)
    eight = recipe_of(update={"optimizer": "adamw_8bit"})
    assert update_memory(LLAMA, eight, work, H100, 1).parts["moments"] == 2 * count


def test_memory_of_a_sampler() -> None:
    recipe = recipe_of(sampling={"cache_gib": 4.0})
    # Qwen2.5 0.5B is tied, and the sampler's copy has a head of its own: 494,032,768 + 151,936 * 896 weights.
    parts = sampler_memory(SMALL, recipe, H100, 1).parts
    assert parts["weights"] == 2 * (494_032_768 + 151_936 * 896)
    assert parts["KV cache"] == 4 * GIB
    assert sampler_memory(LLAMA, recipe, H100, 4).parts["weights"] == 2 * 8_030_261_248 / 4


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
    shape = ModelShape("test", 2, **widths, vocabulary=256)
    counted, tokens = zip(*(_saved(shape, layers, precision) for layers in (2, 4)), strict=True)
    layer = (counted[1] - counted[0]) / 2
    if precision == "bfloat16":
        layer -= 2 * sum(inputs * outputs for inputs, outputs in shape.matrices)  # the copy that is counted elsewhere
    recipe = recipe_of(update={"precision": precision})
    # 5%: masks and sums of attention, a few hundred bytes a token, count at so small a width.
    assert layer / tokens[0] == pytest.approx(activation_bytes(recipe, shape) / shape.layers, rel=0.05)


def _saved(shape: ModelShape, layers: int, precision: Any) -> tuple[int, int]:
    """Bytes that autograd keeps for the backward pass of a pack, each storage once, without weights; and its tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=layers, num_attention_heads=shape.query // 32, num_key_value_heads=shape.key_value // 32,
        head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # alive, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            kept[address] = tensor
        return tensor

    (pack,) = pack_groups([TokenGroup("a", list(range(128)), [[3] * 193, [4] * 193])], 4096)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pack_logps(model, pack, precision=precision)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), pack.input_ids_T.numel()


def test_the_store_of_a_round() -> None:
    recipe = recipe_of()
    work = workload_of(recipe)
    found = round_bytes(LLAMA, recipe, work)
    assert found.keys() == {"tables", "checkpoint"}
    # 8,448 answers of 512 tokens; a token takes 3.03 for its log-probability, at most log2(128,256) / 8 = 2.12 for its
    # id and 1.6 for its text, 6.75 bytes. All else is less than a twentieth of it.
    assert found["tables"] == pytest.approx(8448 * 512 * 6.75, rel=0.05)
    assert found["checkpoint"] == pytest.approx(4 * 8_030_261_248, rel=0.001)
    adapter = recipe_of(update={"lora": {"rank": 16}, "optimizer_state": "carried"})
    assert checkpoint_bytes(LLAMA, adapter) == pytest.approx(4 * 41_943_040, rel=0.05)
    assert round_bytes(LLAMA, adapter, work)["moments"] == 8 * 41_943_040


def test_the_tables_of_a_round_and_of_a_run() -> None:
    """8,192 answers and 256 held-out ones of 512 tokens, each judged once; 1,024 pairs and 32 steps; 8 and 2 shards."""
    recipe = recipe_of()
    work = workload_of(recipe)
    # A token: its log-probability, an id of 17 bits at most, its text.
    token = 3.03 + math.log2(128_256) / 8 + 1.6
    rows = 8448 * (6.4 + 512 * token) + 8448 * 29 + 1024 * 72 + 32 * 160 + 256 * 38
    # Candidates and judgments of 10 shards; preferences, metrics, probe, log-probabilities; an entry each, and 3 more.
    found = round_bytes(LLAMA, recipe, work)
    assert found["tables"] == pytest.approx(rows + 24 * 3300 + 27 * 650)
    # All prompts of 4 rounds and the held-out ones, with ids and text, and the initial policy.
    once = 4 * LLAMA.parameters + (4 * 1024 + 256) * (11 + 256 * (token - 3.03))
    assert run_bytes(LLAMA, recipe, work) == pytest.approx(once + 4 * (found["tables"] + found["checkpoint"]))


def test_more_devices_are_never_slower_where_they_compute() -> None:
    recipe = recipe_of(update={"gradient_checkpointing": True})
    work = workload_of(recipe)
    ranks = [1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 64, 256]
    computed = [update_seconds(LLAMA, recipe, work, H100, count).compute for count in ranks]
    assert computed == sorted(computed, reverse=True)
    held = [update_memory(LLAMA, recipe, work, H100, count).total for count in ranks if count > 1]
    assert held == sorted(held, reverse=True)
    sampled = [sample_seconds(LLAMA, recipe, work, H100, engines=count, group=1) for count in ranks]
    assert sampled == sorted(sampled, reverse=True)


def test_stages_that_overlap_take_as_long_as_the_slowest_and_its_first_and_last_piece() -> None:
    # Pieces of 1, 2 and 1 seconds, ten of them: the second stage works from 1 s to 21 s, and the third one more.
    assert pipelined([10, 20, 10], 10) == 22
    assert pipelined([10, 20, 10], 1) == 40


def test_streaming_overlaps_what_phased_adds() -> None:
    update = {"gradient_checkpointing": True, "batch_order": "shards"}
    recipe = recipe_of(judge={"kind": "reward_model", "path": "owner/name"}, update=update)
    judge = KNOWN_SHAPES["llama-3-8b"]
    given = Split(5, 1, 2)
    found = planned(recipe, 8, mode="streaming", judge=judge, split=given)
    seconds = {stage.name: stage.seconds for stage in found.stages}
    alone = sum(seconds.values())
    assert found.seconds < alone
    assert found.seconds >= max(seconds["sample"], seconds["judge"], seconds["update"])
    assert not any("waits for the last shard" in warning for warning in found.warnings)
    # In an order that is shuffled over the whole round, the update waits for the last shard.
    waits = recipe_of(judge=recipe.judge.model_dump(), update={**update, "batch_order": "shuffled"})
    later = planned(waits, 8, mode="streaming", judge=judge, split=given)
    sampled = pipelined([seconds["sample"], seconds["judge"]], 8)
    assert later.seconds == pytest.approx(sampled + seconds["update"] + seconds["hand over"] + seconds["evaluate"])
    assert any("waits for the last shard" in warning for warning in later.warnings)
    # So it does where replayed preferences are put beside those of the shards.
    beside = recipe_of(judge=recipe.judge.model_dump(), update=update, preferences={"replay": {"share": 0.1}})
    assert any("waits" in said for said in planned(beside, 8, mode="streaming", judge=judge, split=given).warnings)
    best = planned(recipe, 8, mode="streaming", judge=judge)
    assert best.split.sampler + best.split.judge + best.split.trainer == 8
    assert best.seconds <= found.seconds
    phased = planned(recipe, 8, judge=judge)
    assert phased.seconds == pytest.approx(sum(stage.seconds for stage in phased.stages))
    # With staleness the next round is sampled beside the update: the longer of the two, then hand-over and evaluation.
    stale = planned(recipe_of(staleness=1), 8, mode="streaming", split=Split(6, 0, 2))
    seconds = {stage.name: stage.seconds for stage in stale.stages}
    assert seconds["sample"] > seconds["judge"]
    ahead = pipelined([seconds["sample"], seconds["judge"]], 8)
    assert stale.seconds == pytest.approx(max(ahead, seconds["update"]) + seconds["hand over"] + seconds["evaluate"])


def test_what_does_not_fit_is_said() -> None:
    small = recipe_of(sampling={"cache_gib": 4.0})
    update, turn = planned(small).warnings[:2]
    # 16 bytes a weight and 2 of a copy: 144 GB before activations.
    assert update.startswith("update: ")
    assert "GB a device, and the h100 has 80: spread it over more devices" in update
    assert turn.startswith("all, in turn: ")
    assert planned(small, 16).group == 1
    assert planned(small, 16, KNOWN_SHAPES["llama-3-70b"]).group == 4  # 141 GB of weights, and 9.8 beside them on each
    assert any("holds 60 sequences of the 256" in warning for warning in planned(small, 16).warnings)
    plain = recipe_of(sampling={"engine": "transformers"})
    assert any("a plain loop" in warning for warning in planned(plain).warnings)
    assert any("32 gives 64 ranks less than one preference" in warning for warning in planned(small, 64).warnings)
    assert not planned(recipe_of(sampling={"cache_gib": 4.0, "max_sequences": 32}), 1, SMALL).warnings


@pytest.mark.parametrize(
    ("gpus", "more", "message"),
    [
        (1, {"mode": "streaming"}, "streaming needs 2 devices or more"),
        (8, {"mode": "streaming", "split": Split(5, 1, 2)}, "the judge of this recipe takes none of the devices"),
        (8, {"mode": "streaming", "split": Split(5, 0, 2)}, "5:0:2 does not share out 8 devices"),
        (8, {"split": Split(5, 1, 2)}, "a split is for --mode streaming"),
    ],
)
def test_devices_that_do_not_go_round(gpus: int, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(recipe_of(), gpus, **more)


def test_a_reward_model_of_unknown_size_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="give --judge-parameters"):
        planned(recipe_of(judge={"kind": "reward_model", "path": "owner/name"}))


def test_money_is_devices_and_hours() -> None:
    found = planned(recipe_of(), 8, usd_per_hour=2.0)
    assert found.usd is not None
    assert found.usd[0] == pytest.approx(8 * 2 * found.seconds / 3600)
    # Four rounds, and round 0's evaluation.
    evaluation = found.stages[-1].seconds
    assert found.run_seconds == pytest.approx(4 * found.seconds + evaluation)
    assert found.usd[1] == pytest.approx(8 * 2 * found.run_seconds / 3600)


def test_factors_scale_the_stages() -> None:
    plain, slow = planned(recipe_of()), planned(recipe_of(), factors=Factors(sample=2, update=3, sync_weights=4))
    before, after = ({stage.name: stage.seconds for stage in plan.stages} for plan in (plain, slow))
    assert after["sample"] == pytest.approx(2 * before["sample"])
    assert after["update"] == pytest.approx(3 * before["update"])
    assert after["hand over"] == pytest.approx(4 * before["hand over"])
    assert after["judge"] == pytest.approx(before["judge"])


def test_the_work_of_a_round() -> None:
    assert workload_of(recipe_of()).preferences == 1024
    replayed = recipe_of(preferences={"replay": {"share": 0.5}})
    assert workload_of(replayed).preferences == 2048
    assert workload_of(recipe_of(), kept=0.25).preferences == 256
    pairs = recipe_of(preferences={"rule": "all_pairs"})
    assert workload_of(pairs).preferences == 1024 * 28
    assert workload_of(recipe_of(preferences={"rule": "all_pairs", "max_pairs": 5})).preferences == 1024 * 5
    ranked = recipe_of(preferences={"rule": "full_ranking"}, update={"objective": "plackett_luce"})
    # The prompt once, and eight answers without their last tokens.
    assert workload_of(ranked).preference_tokens == 256 + 8 * 511
    assert workload_of(recipe_of(), answer_tokens=300).sampled_tokens == (8192 + 256) * 300
