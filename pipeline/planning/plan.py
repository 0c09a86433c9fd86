"""A round put together: which devices do what, how long it takes, what limits it, and what does not fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.planning import time
from pipeline.planning.devices import Device, Parts
from pipeline.planning.memory import device_memory, round_store
from pipeline.planning.work import Workload
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """A round and its run on paper, in seconds, bytes and USD.

    The largest part of a stage limits it. Memory is of one device of each part; "at once" is the highest of a device on
    which parts take turns, or of a machine without GPUs. What ``measured`` does not scale is assumed.
    """

    work: Workload
    device: Device
    devices: int
    stages: dict[str, Parts]
    seconds: float
    run_seconds: float
    memory: dict[str, Parts]
    store: Parts
    run_store: float
    usd: float | None
    measured: Mapping[str, float]
    warnings: list[str]


def plan_round(
    work: Workload, device: Device, devices: int | None = None, *, usd_per_hour: float | None = None,
    measured: Mapping[str, float] | None = None,
) -> Plan:  # fmt: skip
    """Plans a round on so many devices of a kind; as many as the recipe names if None.

    In mode phased, or on one device, all parts have all devices, in turn. In mode streaming the update and the judge
    have as many as the recipe has ranks, the sampler the others. ``usd_per_hour`` is the price of one device, and
    ``measured`` says by how much stages were slower than on paper.
    """
    recipe, measured = work.recipe, measured or {}
    engines, ranks = max(recipe.cluster.sampler.replicas, len(recipe.engines)), recipe.devices.trainer_world
    samplers = engines * recipe.gpus_per_engine
    devices = devices or (samplers + ranks if recipe.mode == "streaming" else max(samplers, ranks))
    apart = recipe.mode == "streaming" and devices > 1
    samplers, ranks = (max(1, devices - ranks), min(ranks, devices - 1)) if apart else (devices, devices)
    stages = {
        name: {part: seconds * measured.get(name, measured.get(part, 1.0)) for part, seconds in parts.items()}
        for name, parts in _stages(work, device, samplers, ranks).items()
    }
    seconds, store = _overlapped(recipe, stages, apart=apart), round_store(work)
    memory = device_memory(work, device, ranks, apart=apart)
    warnings = list(_warnings(work, device, memory))
    # Round 0 is evaluated too, and measured for the gate.
    run_seconds = recipe.rounds * seconds + sum(sum(stages.get(name, {}).values()) for name in ("evaluate", "gate"))
    usd = None if usd_per_hour is None else usd_per_hour * devices * run_seconds / 3600
    return Plan(
        work, device, devices, stages, seconds, run_seconds, memory, store,
        work.saved_bytes * work.policy.parameters + recipe.rounds * sum(store.values()), usd, measured, warnings,
    )  # fmt: skip


def _stages(work: Workload, device: Device, samplers: int, ranks: int) -> dict[str, Parts]:
    recipe, held_out = work.recipe, work.recipe.evaluation.prompts
    judges = [recipe.judges[place] for place in recipe.held_out_judges]
    return {
        "sample": time.sampling(work, device, samplers),
        "judge": time.judging(work, device, ranks, [recipe.judge], work.answers),
        "update": time.update(work, device, ranks),
        "sync weights": time.weight_sync(work, device),
        "evaluate": {
            "sample": work.evaluations * sum(time.sampling(work, device, samplers, held_out=True).values()),
            "judge": work.evaluations * sum(time.judging(work, device, ranks, judges, held_out).values()),
            **time.scoring(work, device, ranks),
        },
        **({"gate": gate} if (gate := time.gate(work, device, samplers, ranks)) else {}),
    }


def _overlapped(recipe: Recipe, stages: Mapping[str, Parts], *, apart: bool) -> float:
    """Counts the seconds of a round; streaming at its best, as if shards were so small that the longer side counted."""
    sampled, judged, trained, *rest = (sum(parts.values()) for parts in stages.values())
    if not apart:
        return sampled + judged + trained + sum(rest)
    # The update follows the shards if these decide the order of its steps; with staleness, the next round's sampling.
    shards = recipe.update.batch_order == "shards" and not (recipe.people or recipe.preferences.replay.share)
    beside, after = (trained, 0.0) if recipe.staleness or shards else (0.0, trained)
    return max(sampled, judged + beside) + after + sum(rest)


def _warnings(work: Workload, device: Device, memory: Mapping[str, Parts]) -> Iterator[str]:
    for part, sizes in memory.items():
        if device.memory is not None and (needed := sum(sizes.values())) > device.memory:
            have = f"{needed / 1e9:.1f} GB, and a device has {device.memory / 1e9:.0f}"
            yield f"memory, {part}: {have}: take more devices, or less update.token_budget or sampling.cache_gib"
    sampling = work.recipe.sampling
    if (batch := time.decode_batch(work, device, sampling.max_sequences)) < sampling.max_sequences:
        yield f"the KV cache holds {batch} sequences of {sampling.max_sequences}: raise sampling.cache_gib"
