"""Bytes that each part of a round holds on one device, and bytes that a round leaves in the store."""

from math import log2

from pipeline.config.devices import HOST_PART_BYTES
from pipeline.planning.devices import FLOAT, GIB, HALF, Device, Parts
from pipeline.planning.work import Workload

# Of a sampled token in the store: its log-probability, compressed (measured in the demo's round 3, 2026-11-25), and its
# text (assumed). Of a completion with its judgment, beside its tokens (measured there).
LOGPROB_BYTES, TEXT_BYTES, ROW_BYTES = 3.03, 1.6, 40.0


def device_memory(work: Workload, device: Device, ranks: int, *, apart: bool) -> dict[str, Parts]:
    """Gives the memory of each part, and of all parts that share a device, or a machine without GPUs."""
    memory = {"sampler": sampler_memory(work, device), "update": update_memory(work, device, ranks)}
    if work.judge:  # in half precision, as published ones are; its activations are assumed to be as the framework
        memory["judge"] = {"weights": HALF * work.judge.parameters, "framework": 2 * device.framework_bytes}
    together = {part: sum(sizes.values()) for part, sizes in memory.items()}
    if device.name == "cpu":  # all engines are on the one machine
        together["sampler"] *= len(work.recipe.engines)
    sleeps = work.recipe.mode == "phased" and not work.recipe.staleness
    if device.name != "cpu" and (apart or sleeps):
        # Streaming, the sampler has devices of its own; else it sleeps while the update runs, whose weights stay.
        resident = 0.0 if work.recipe.devices.offload == "all" else memory["update"]["weights"]
        beside = together.pop("sampler") + resident
        together["update"] = max(together["update"], 0.0 if apart else beside)
    return {**memory, "at once": together}


def sampler_memory(work: Workload, device: Device) -> Parts:
    """Counts the bytes of one device of a sampling engine; a tied output head is copied, an adapter is beside it."""
    policy, gpus = work.policy, work.recipe.gpus_per_engine
    adapter = work.trained_weights * work.element_bytes(device) if work.serves_adapters(device) else 0
    return {
        **({"adapter": float(adapter)} if adapter else {}),
        "weights": (policy.multiplied + policy.embedding) * work.element_bytes(device) / gpus,
        "KV cache": work.recipe.sampling.cache_gib * GIB / gpus,
        "activations": 0.1 * (device.memory or 0.0),  # assumed: what the sampler asks vLLM to find free beside
        "framework": float(device.framework_bytes),
    }


def update_memory(work: Workload, device: Device, ranks: int) -> Parts:
    """Counts the bytes of one rank of an update.

    Float32 weights, gradients and moments are spread over the ranks; activations are those of one pack. Several ranks
    gather two layers, and what is outside of the layers. A single one in bfloat16 keeps a bfloat16 copy of all weights.
    On a processor the results that adapters add up are freed between activations that stay, and leave holes.
    """
    config, policy, trained = work.recipe.update, work.policy, work.trained_weights
    half, full = config.precision == "bfloat16", config.lora is None
    sizes = {
        "weights": FLOAT * (policy.parameters + (0 if full else trained)) / ranks,
        "gradients": FLOAT * trained / ranks,
        "moments": _moments(work, ranks),
        "activations": min(config.token_budget, work.step_tokens(ranks)) * activation_bytes(work),
        "framework": float(device.trainer_bytes),
    }
    if not full and device.adapter_holes:
        sizes["holes"] = device.adapter_holes * sizes["activations"]
    if ranks > 1:
        layers = policy.layer * (2 * (HALF if half else FLOAT) + FLOAT * full)
        sizes["gathered"] = layers + (policy.parameters - policy.layers * policy.layer) * FLOAT * (1 + full)
    elif half:
        sizes["bfloat16 copy"] = HALF * policy.parameters
    if device.name != "cpu":  # float32 logits of a chunk with their gradient, and the gradient of the head
        sizes["logits"] = 2 * FLOAT * 2**27 + FLOAT * full * policy.embedding
    return sizes


def _moments(work: Workload, ranks: int) -> float:
    """Counts a rank's moments on its device; if they lie in main memory, those of a part, or of the largest tensor."""
    moments = 2 * (FLOAT if work.recipe.update.optimizer == "adamw" else 1) * work.trained_weights / ranks
    if work.recipe.devices.offload == "none":
        return moments
    largest = 2 * FLOAT * work.policy.embedding / ranks if work.recipe.update.lora is None else 0
    return min(moments, float(max(HOST_PART_BYTES, largest)))


def activation_bytes(work: Workload) -> float:
    """Counts what the backward pass needs of a token, by what autograd saves; recomputed, a layer keeps its input.

    It keeps it in the precision of the passes.
    """
    policy, config = work.policy, work.recipe.update
    hidden, wide, mlp = (26, 6, 8) if config.precision == "bfloat16" else (24, 12, 16)
    layer = hidden * policy.hidden + wide * (policy.query + policy.key_value) + mlp * policy.intermediate
    if not config.gradient_checkpointing:
        return layer * policy.layers
    return layer + (HALF if config.precision == "bfloat16" else FLOAT) * policy.hidden * policy.layers


def round_store(work: Workload) -> Parts:
    """Counts what a round leaves in the store; ids are at most as wide as the vocabulary needs."""
    config, row = work.recipe.update, ROW_BYTES / work.answer_tokens
    token = LOGPROB_BYTES + log2(work.policy.vocabulary) / 8 + TEXT_BYTES
    sizes = {"tables": work.sampled_tokens * (token + row), "checkpoint": work.checkpoint_bytes}
    if config.optimizer_state == "carried":
        sizes["moments"] = 2 * (FLOAT if config.optimizer == "adamw" else 1) * work.trained_weights
    if config.reference == "ema":
        sizes["moving average"] = FLOAT * work.policy.parameters
    return sizes
