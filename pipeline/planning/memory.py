"""Bytes that each part of a round holds on one device, and bytes that a round leaves in the store."""

from math import log2

from pipeline.planning.devices import GIB, Device
from pipeline.planning.work import Workload

FLOAT, HALF = 4, 2
LOGITS_AT_ONCE = 1 << 27
"""Logits of a chunk of the update on a GPU."""
LOGPROB_BYTES, TEXT_BYTES, ROW_BYTES = 3.03, 1.6, 40.0
"""Of a token in the store: its log-probability, compressed, and its text; of a completion with its judgment, beside its
tokens. The text is assumed, the others were measured in the demo's round 3, 2026-11-25."""

Sizes = dict[str, float]
"""Bytes by what they are for."""


def device_memory(work: Workload, device: Device, ranks: int) -> dict[str, Sizes]:
    """Gives the memory of each part, and of all parts that share a device, or a machine without GPUs."""
    sampler, update, judge = sampler_memory(work, device), update_memory(work, device, ranks), judge_memory(work, device)
    memory = {"sampler": sampler, "update": update} | ({"judge": judge} if judge else {})
    if device.name == "cpu":
        memory["at once"] = {part: sum(sizes.values()) for part, sizes in memory.items()}
    elif work.recipe.mode == "phased":
        # The engine sleeps while the update runs; the update's weights stay while the engine samples.
        working = max(sum(sampler.values()) + update["weights"], sum(update.values()))
        memory["at once"] = {"sampler or update": working, "judge": sum(judge.values())}
    return memory


def sampler_memory(work: Workload, device: Device) -> Sizes:
    """Counts one device of a sampling engine; a tied output head is copied."""
    policy, gpus = work.policy, work.recipe.cluster.sampler.gpus_per_engine
    return {
        "weights": (policy.multiplied + policy.embedding) * work.element_bytes(device) / gpus,
        "KV cache": work.recipe.sampling.cache_gib * GIB / gpus,
        "activations": 0.1 * (device.memory or 0.0),  # assumed: what the sampler asks vLLM to find free beside
        "framework": float(device.framework_bytes),
    }


def judge_memory(work: Workload, device: Device) -> Sizes:
    """Counts a reward model in half precision; its activations are assumed to take as much as the framework."""
    return {"weights": HALF * work.judge.parameters, "framework": 2 * device.framework_bytes} if work.judge else {}


def update_memory(work: Workload, device: Device, ranks: int) -> Sizes:
    """Counts one rank of an update.

    Master weights, gradients and moments are float32 (8-bit moments: 1 byte each), spread over the ranks. Of several
    ranks, two layers and what is outside of the layers are whole, with their gradients; one rank in bfloat16 keeps a
    bfloat16 copy of all weights for the backward pass. Activations are those of one pack.
    """
    config, policy, trained = work.recipe.update, work.policy, work.trained_weights
    half, full = config.precision == "bfloat16", config.lora is None
    sizes = {
        "weights": FLOAT * (policy.parameters + (0 if full else trained)) / ranks,
        "gradients": FLOAT * trained / ranks,
        "moments": 2 * (FLOAT if config.optimizer == "adamw" else 1) * trained / ranks,
        "activations": min(config.token_budget, work.step_tokens(ranks)) * activation_bytes(work),
        "framework": float(device.framework_bytes),
    }
    if ranks > 1:
        gradients, outside = FLOAT * full, policy.parameters - policy.layers * policy.layer
        layers = policy.layer * (2 * (HALF if half else FLOAT) + gradients)
        sizes["gathered"] = layers + outside * (FLOAT + gradients)
    elif half:
        sizes["bfloat16 copy"] = HALF * policy.parameters
    if device.name != "cpu":  # float32 logits with their gradient, and the gradient of the head
        sizes["logits"] = 2 * FLOAT * LOGITS_AT_ONCE + FLOAT * full * policy.embedding
    return sizes


def activation_bytes(work: Workload) -> float:
    """Counts what the backward pass needs of a token, over all layers.

    The factors are what autograd saves of a Llama-shaped layer, which the test counts again. With gradient
    checkpointing a layer's float32 input is kept of all layers, and one layer is computed anew at a time.
    """
    policy, config = work.policy, work.recipe.update
    hidden, wide, mlp = (26, 6, 8) if config.precision == "bfloat16" else (24, 12, 16)
    layer = hidden * policy.hidden + wide * (policy.query + policy.key_value) + mlp * policy.intermediate
    return layer + FLOAT * policy.hidden * policy.layers if config.gradient_checkpointing else layer * policy.layers


def round_store(work: Workload) -> Sizes:
    """Counts what a round leaves in the store; ids are at most as wide as the vocabulary needs."""
    token, config = LOGPROB_BYTES + log2(work.policy.vocabulary) / 8 + TEXT_BYTES, work.recipe.update
    rows = work.answers + work.recipe.evaluation.prompts
    sizes = {"tables": rows * ROW_BYTES + work.sampled_tokens * token, "checkpoint": FLOAT * work.trained_weights}
    if config.optimizer_state == "carried":
        sizes["moments"] = 2 * (FLOAT if config.optimizer == "adamw" else 1) * work.trained_weights
    if config.reference == "ema":
        sizes["moving average"] = FLOAT * work.policy.parameters
    return sizes
