"""Seconds of each stage of a round, by what limits it: what must be multiplied, read and sent, over what devices do."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from pipeline.dpo.measured_sample import displacement_sample
from pipeline.judges import JudgeConfig
from pipeline.judges.implicit import ImplicitConfig
from pipeline.judges.llm import LlmConfig
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.planning.devices import FLOAT, GIB, Device, Parts
from pipeline.planning.work import Workload


def decode_batch(work: Workload, device: Device, sequences: int) -> int:
    """Counts the sequences that an engine decodes at a time, of so many: the KV cache holds them at full length."""
    sampling, shared = work.recipe.sampling, work.shared_tokens(device)
    held = shared / sampling.candidates + (work.prompt_tokens - shared) + work.answer_tokens
    room = sampling.cache_gib * GIB / (held * work.policy.kv_bytes(work.element_bytes(device)))
    return max(1, min(sequences, sampling.max_sequences, int(room)))


def decode_step(work: Workload, device: Device, batch: int) -> Parts:
    """Estimates a decoding step: it reads all weights once, and keys and values of sequences that are half done."""
    policy, element, gpus = work.policy, work.element_bytes(device), work.recipe.gpus_per_engine
    cached = batch * (work.prompt_tokens + work.answer_tokens / 2) * policy.kv_bytes(element)
    read = (policy.multiplied * element + cached) / (gpus * device.bandwidth * device.traffic_share)
    compute = _passes(policy.multiplied * batch, work, device, gpus)
    slower = "bandwidth" if read > compute else "compute"
    return {slower: max(read, compute), "host": device.step_seconds + batch * device.sequence_seconds}


def sampling(work: Workload, device: Device, devices: int, *, held_out: bool = False) -> Parts:
    """Estimates the sampling of a round's completions, or of one to each held-out prompt, by all engines together."""
    recipe, gpus = work.recipe, work.recipe.gpus_per_engine
    candidates = 1 if held_out else recipe.sampling.candidates
    prompts = recipe.evaluation.prompts if held_out else recipe.sampling.prompts_per_round
    prompts = ceil(prompts / max(1, devices // gpus))  # of one engine
    batch, shared = decode_batch(work, device, prompts * candidates), work.shared_tokens(device)
    steps = work.answer_tokens * max(1.0, prompts * candidates / batch)
    parts = {name: steps * seconds for name, seconds in decode_step(work, device, batch).items()}
    tokens = prompts * (shared + candidates * (work.prompt_tokens - shared))
    prefill = _passes(work.policy.multiplied * tokens, work, device, gpus)
    return {**parts, "compute": parts.get("compute", 0.0) + prefill}


def gate(work: Workload, device: Device, engines: int, ranks: int) -> Parts:
    """Estimates the gate: its prompts answered at full length and judged, and its text scored; nothing without one."""
    config = work.recipe.gate
    if config is None:
        return {}
    text = 0 if config.text is None else config.text_tokens
    parts = {"compute": _passes(work.policy.multiplied * text, work, device, ranks)}
    if answers := ceil(work.gate_answers / max(1, engines // work.recipe.gpus_per_engine)):
        own = replace(work, answer_tokens=work.recipe.gate_tokens)
        batch = decode_batch(own, device, answers)
        steps = own.answer_tokens * max(1.0, answers / batch)
        parts["sample"] = steps * sum(decode_step(own, device, batch).values())
        parts["sample"] += _passes(work.policy.multiplied * answers * work.prompt_tokens, work, device, 1)
        parts["judge"] = sum(judging(own, device, ranks, work.recipe.gate_judges, work.gate_answers).values())
    return parts


def judging(work: Workload, device: Device, devices: int, judges: Sequence[JudgeConfig], answers: int) -> Parts:
    """Estimates the judging of so many completions: models pass over prompt and completion, judges take turns."""
    weights, rules, requests = 0, 0, 0.0
    for part in (part for judge in judges for part in judge.parts()):
        if isinstance(part, LlmConfig):
            requests += part.mode.requests(work.recipe.sampling.candidates) / part.concurrency
        elif isinstance(part, RewardModelConfig):
            weights += work.judge.multiplied if work.judge else 0
        elif isinstance(part, ImplicitConfig):
            weights += 2 * work.policy.multiplied  # the policy and its reference
        elif part.MEMBER:  # it judges by itself, and asks nobody
            rules += 1
    tokens = answers * (work.prompt_tokens + work.answer_tokens)
    return {
        "compute": _passes(weights * tokens, work, device, devices),
        "endpoint": answers * requests * device.request_seconds,
        "rules": answers * rules * device.rule_seconds,
    }


def update(work: Workload, device: Device, ranks: int) -> Parts:
    """Estimates the training: 6 operations a weight and token, 8 if layers are computed again; with an adapter 4 and 6.

    FSDP gathers the weights twice in each pass and sums the gradients once, while it computes: the longer counts.
    """
    config, policy, tokens = work.recipe.update, work.policy, work.step_tokens(ranks)
    steps = config.epochs * ceil(work.preferences / config.batch_size)
    operations = (6 if config.lora is None else 4) + (2 if config.gradient_checkpointing else 0)
    compute = steps * operations * policy.multiplied * tokens / (device.speed(config.precision) * device.update_share)
    sent = (2 * work.element_bytes(device) * policy.parameters + FLOAT * work.trained_weights) * (ranks - 1) / ranks
    link = (device.link if ranks <= device.per_node else device.network) * device.traffic_share
    links = steps * ceil(tokens / config.token_budget) * sent / link
    # The start is read. The checkpoint is written beside the evaluation if the sampler has the weights from memory.
    stored = 1 if work.sent_from_memory(device) and not work.recipe.sampler_sleeps else 2
    given = config.takes_samplers(device.drift) and config.reference == "previous"
    scored = (0 if given else work.preferences) + displacement_sample(work.preferences, config.epochs)
    return {
        ("links between ranks" if links > compute else "compute"): max(links, compute),
        "scoring": _passes(policy.multiplied * scored * work.preference_tokens, work, device, ranks),
        "store": stored * work.checkpoint_bytes / device.store_bandwidth,
    }


def weight_sync(work: Workload, device: Device) -> Parts:
    """Estimates a weight sync: out of the trainer's memory, in the sampler's precision, or else from the store.

    From the store, as between machines, a copy, untied or merged, is first written and read again. So it is after a
    restart, which is not reckoned with. An adapter that is served is read alone.
    """
    if work.serves_adapters(device):
        return {"store": work.checkpoint_bytes / device.store_bandwidth}
    if work.sent_from_memory(device):
        return {"memory": work.element_bytes(device) * work.policy.parameters / device.sync_bandwidth}
    copied = work.policy.tied or work.recipe.update.lora is not None
    # Merged, weights are float32.
    size = FLOAT if work.recipe.update.lora is not None else work.saved_bytes
    return {"store": size * work.policy.parameters * (3 if copied else 1) / device.store_bandwidth}


def scoring(work: Workload, device: Device, ranks: int) -> Parts:
    """Estimates the scoring of held-out completions under policies other than the sampler's, of three in all."""
    tokens = work.recipe.evaluation.prompts * (work.prompt_tokens + work.answer_tokens)
    return {
        "compute": (3 - work.recipe.update.measures_by_samplers(device.drift))
        * _passes(work.policy.multiplied * tokens, work, device, ranks),
        "store": 2 * work.checkpoint_bytes / device.store_bandwidth,
    }


def _passes(products: float, work: Workload, device: Device, devices: int) -> float:
    """Estimates the seconds of passes without gradient: two operations for each weight and token."""
    return 2 * products / (devices * device.speed(work.recipe.update.precision) * device.pass_share)
