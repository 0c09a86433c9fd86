"""A round put together: which devices do what, how long it takes, what limits it, and what does not fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.planning import time
from pipeline.planning.devices import GB, Device
from pipeline.planning.memory import FLOAT, Sizes, device_memory, round_store
from pipeline.planning.time import Parts
from pipeline.planning.work import Workload


@dataclass(frozen=True)
class Plan:
    """A round and its run on paper.

    Attributes:
        stages: seconds of each stage if it ran alone, by what they go to; the largest part limits it.
        seconds, run_seconds: of a round, less than the sum of its stages if they overlap, and of all rounds.
        memory: bytes of one device of each part; "at once" is the most that is held on a device on which all parts take
            turns, or in a machine without GPUs.
        store, run_store: bytes that a round leaves, by what they are, and that a run leaves.
        usd: of the run; None if no price was given.
        warnings: what does not fit.
    """

    stages: dict[str, Parts]
    seconds: float
    run_seconds: float
    memory: dict[str, Sizes]
    store: Sizes
    run_store: float
    usd: float | None
    warnings: list[str]


def plan_round(
    work: Workload, device: Device, devices: int = 1, *, usd_per_hour: float | None = None,
    measured: Mapping[str, float] | None = None,
) -> Plan:  # fmt: skip
    """Plans a round on so many devices of a kind.

    In mode phased all parts have all devices, in turn. In mode streaming the update, and a model that judges, have as
    many as the recipe has ranks, and the sampler has the others.

    Args:
        usd_per_hour: price of one device.
        measured: by how much stages, and what they leave, were larger than on paper, by name; see calibration.

    Raises:
        ConfigError: there are too few devices for the mode.
    """
    recipe, measured = work.recipe, measured or {}
    ranks = recipe.devices.trainer_world if recipe.mode == "streaming" else devices
    samplers = devices - ranks if recipe.mode == "streaming" else devices
    if samplers < 1:
        raise ConfigError(
            f"mode streaming needs devices for the sampler beside {ranks} of the update, and --gpus is {devices}: give "
            "more, or set mode=phased"
        )
    stages = {
        name: {part: seconds * measured.get(name, measured.get(part, 1.0)) for part, seconds in parts.items()}
        for name, parts in _stages(work, device, samplers, ranks).items()
    }
    seconds, memory = _overlapped(recipe, stages), device_memory(work, device, ranks)
    store = {name: size * measured.get(name, 1.0) for name, size in round_store(work).items()}
    run_seconds = recipe.rounds * seconds + sum(stages["evaluate"].values())  # round 0 is evaluated too
    run_store = FLOAT * work.policy.parameters + recipe.rounds * sum(store.values())
    usd = None if usd_per_hour is None else usd_per_hour * devices * run_seconds / 3600
    warnings = list(_warnings(work, device, memory))
    return Plan(stages, seconds, run_seconds, memory, store, run_store, usd, warnings)


def _stages(work: Workload, device: Device, samplers: int, ranks: int) -> dict[str, Parts]:
    recipe, held_out = work.recipe, work.recipe.evaluation.prompts
    judges = [recipe.judges[place] for place in recipe.held_out_judges]
    return {
        "sample": time.sampling(work, device, samplers),
        "judge": time.judging(work, device, ranks, [recipe.judge], work.answers),
        "update": time.update(work, device, ranks),
        "hand over": time.hand_over(work, device),
        "evaluate": {
            "sample": sum(time.sampling(work, device, samplers, held_out=True).values()),
            "judge": sum(time.judging(work, device, ranks, judges, held_out).values()),
            **time.scoring(work, device, ranks),
        },
    }


def _overlapped(recipe: Recipe, stages: Mapping[str, Parts]) -> float:
    """Seconds from the beginning of a round to that of the next."""
    sampled, judged, trained, *rest = (sum(parts.values()) for parts in stages.values())
    if recipe.mode == "phased":
        return sampled + judged + trained + sum(rest)
    if recipe.staleness:  # the next round is sampled beside this one's update
        return max(sampled, judged + trained) + sum(rest)
    # The first epoch's steps follow the shards if these decide their order; all else comes after the last shard.
    streams = recipe.update.batch_order == "shards" and not (recipe.people or recipe.preferences.replay.share)
    streamed = next(iter(stages["update"].values())) / recipe.update.epochs if streams else 0.0
    shards = ceil(recipe.sampling.prompts_per_round / recipe.sampling.shard_prompts)
    fast, slow = sorted((sampled, judged + streamed))
    return slow + fast / shards + trained - streamed + sum(rest)


def _warnings(work: Workload, device: Device, memory: Mapping[str, Sizes]) -> Iterator[str]:
    for part, sizes in memory.items():
        if device.memory is not None and (needed := sum(sizes.values())) > device.memory:
            yield f"{part}: needs {needed / GB:.1f} GB, and a device has {device.memory / GB:.0f}: {_REMEDIES[part]}"
    sampling = work.recipe.sampling
    if (batch := time.decode_batch(work, device, sampling.max_sequences)) < sampling.max_sequences:
        wanted = sampling.cache_gib * sampling.max_sequences / batch
        yield f"sampling.cache_gib holds {batch} of {sampling.max_sequences} sequences: {wanted:.0f} would hold them all"


_REMEDIES = {
    "sampler": "lower sampling.cache_gib, or raise cluster.sampler.gpus",
    "judge": "take a smaller reward model",
    "update": "take more devices, gradient_checkpointing, an adapter (lora), or a smaller token_budget",
    "at once": "see the parts above, or give each devices of its own (mode streaming)",
}
