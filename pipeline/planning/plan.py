"""A round put together: which devices do what, how long it takes, what limits it, and what does not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.planning.constants import ASSUMED, GB, Assumptions, Device
from pipeline.planning.disk import round_bytes, run_bytes
from pipeline.planning.memory import Memory, judge_memory, sampler_memory, update_memory
from pipeline.planning.shapes import ModelShape
from pipeline.planning.stages import AS_RECKONED, Factors, Mode, Planner, Split
from pipeline.planning.timing import Decoding, UpdateTime, decoding
from pipeline.planning.workload import Workload


@dataclass(frozen=True)
class StageTime:
    """A stage of a round: its seconds if it ran alone, its devices, tokens a second, and what most of it goes to."""

    name: str
    seconds: float
    devices: int
    tokens_per_second: float | None
    bound: str


@dataclass(frozen=True)
class Plan:
    """A round and its run on paper.

    Attributes:
        group: devices of one sampling engine, which share its weights (tensor parallelism).
        seconds: of a round; less than the sum of its stages where they overlap.
        sampling, judging: seconds of all of it, the evaluation's included, as a round's summary counts them.
        busy: share of the devices' time in which they work.
        memory: of one device of each part.
        disk: bytes that a round leaves, by what they are.
        factors: that are in the seconds, except in those of ``update``.
        warnings: what does not fit, or is not in the plan.
        usd: of a round and of the run; None where no price was given.
    """

    mode: Mode
    device: Device
    gpus: int
    split: Split
    group: int
    work: Workload
    stages: list[StageTime]
    seconds: float
    run_seconds: float
    sampling: float
    judging: float
    busy: float
    decoding: Decoding
    update: UpdateTime
    memory: dict[str, Memory]
    disk: dict[str, float]
    run_disk: float
    usd: tuple[float, float] | None
    factors: Factors
    warnings: list[str]

    @property
    def bottleneck(self) -> StageTime:
        """The longest stage."""
        return max(self.stages, key=lambda stage: stage.seconds)


def plan_round(
    recipe: Recipe,
    shape: ModelShape,
    device: Device,
    gpus: int,
    work: Workload,
    *,
    mode: Mode = "phased",
    judge: ModelShape | None = None,
    split: Split | None = None,
    group: int | None = None,
    usd_per_hour: float | None = None,
    assumed: Assumptions = ASSUMED,
    factors: Factors = AS_RECKONED,
) -> Plan:
    """A round of a recipe with this policy on so many devices.

    Args:
        judge: the size of the reward model, where the recipe has one.
        split: devices of each part in streaming; the split with the shortest round where None.
        group: devices of one sampling engine; as few as hold it where None.

    Raises:
        ConfigError: the recipe has a reward model of unknown size, or the split does not add up to the devices.
    """
    if (work.judging.models or work.held_out_judging.models) and judge is None:
        raise ConfigError("the size of the reward model is not known here: give --judge-parameters, such as 8e9")
    group = group or _group(shape, recipe, device, assumed)
    planner = Planner(recipe, shape, judge, work, device, min(group, gpus), mode, assumed, factors)
    chosen = _split(planner, gpus, split)
    update = planner.update(chosen.trainer)
    engine = decoding(shape, recipe, work, device, planner.group, _per_engine(work, chosen, planner.group), assumed)
    stages = list(_stages(planner, chosen, engine, update))
    evaluation, weight_sync = planner.evaluate(chosen), planner.sync_weights()
    seconds = planner.overlapped(chosen) + weight_sync + evaluation
    run_seconds = recipe.rounds * seconds + evaluation
    memory = _memory(planner, chosen)
    hourly = None if usd_per_hour is None else gpus * usd_per_hour / 3600
    return Plan(
        mode=mode,
        device=device,
        gpus=gpus,
        split=chosen,
        group=planner.group,
        work=work,
        stages=stages,
        seconds=seconds,
        run_seconds=run_seconds,
        sampling=planner.sample(chosen.sampler) + planner.sample(chosen.sampler, held_out=True),
        judging=planner.judging(chosen.judge) + planner.judging(chosen.judge, held_out=True),
        busy=_busy(stages, gpus, seconds),
        decoding=engine,
        update=update,
        memory=memory,
        disk=round_bytes(shape, recipe, work),
        run_disk=run_bytes(shape, recipe, work),
        usd=None if hourly is None else (hourly * seconds, hourly * run_seconds),
        factors=factors,
        warnings=list(_warnings(planner, chosen, gpus, group, memory, engine)),
    )


def _group(shape: ModelShape, recipe: Recipe, device: Device, assumed: Assumptions) -> int:
    """The fewest devices, a power of two within a node, over which a sampling engine fits; a node's where none does."""
    group = 1
    while group < device.per_node and not sampler_memory(shape, recipe, device, group, assumed).fits(device):
        group *= 2
    return group


def streaming_needs(work: Workload) -> int:
    """The fewest devices of which each part that computes has one to itself."""
    return 3 if _judge_computes(work) else 2


def _judge_computes(work: Workload) -> bool:
    return work.judging.on_gpu or work.held_out_judging.on_gpu


def _split(planner: Planner, gpus: int, split: Split | None) -> Split:
    if planner.mode == "phased":
        if split is not None:
            raise ConfigError("a split is for --mode streaming: phased, each part has all devices in its turn")
        return Split(gpus, gpus, gpus)
    judged, least = _judge_computes(planner.work), streaming_needs(planner.work)
    if gpus < least:
        raise ConfigError(
            f"streaming needs {least} devices or more here, one for each part that computes, and --gpus is {gpus}: "
            "give more, or take --mode phased"
        )
    if split is not None:
        if split.sampler + split.judge + split.trainer != gpus or min(split.sampler, split.trainer) < 1:
            raise ConfigError(
                f"the split {split.sampler}:{split.judge}:{split.trainer} does not share out {gpus} devices: its parts "
                "must add up to them, with one or more for sampler and update"
            )
        if judged != bool(split.judge):
            wanted = "one or more" if judged else "none"
            raise ConfigError(
                f"the judge of this recipe takes {wanted} of the devices, and the split has {split.judge}"
            )
        return split
    judges = range(1, gpus - 1) if judged else range(1)
    # Engines are whole groups. Where there are few devices, a part has to do with less than a group.
    sizes = range(planner.group, gpus, planner.group) if gpus > planner.group else range(1, gpus)
    splits = [
        Split(sampler, judge, gpus - sampler - judge) for sampler in sizes for judge in judges if sampler + judge < gpus
    ]
    splits = splits or [Split(gpus - least + 1, least - 2, 1)]
    fitting = [split for split in splits if planner.fits(split.trainer)]
    return min(fitting or splits, key=planner.cost)


def _stages(planner: Planner, split: Split, engine: Decoding, update: UpdateTime) -> Iterator[StageTime]:
    work = planner.work
    sampled = planner.sample(split.sampler)
    rate = work.answers * work.answer_tokens / sampled
    yield StageTime("sample", sampled, split.sampler, rate, engine.bound)
    if work.judging != type(work.judging)():
        judged = planner.judging(split.judge)
        rate = work.answers * (work.prompt_tokens + work.answer_tokens) / judged
        on_gpu = work.judging.on_gpu
        bound = "compute" if on_gpu else "requests" if work.judging.requests else "host"
        yield StageTime("judge", judged, split.judge if on_gpu else 0, rate, bound)
    trained = update.total * planner.factors.update
    rate = planner.recipe.update.epochs * work.preferences * work.preference_tokens / trained
    yield StageTime("update", trained, split.trainer, rate, update.bound)
    yield StageTime("hand over", planner.sync_weights(), split.sampler, None, "store")
    devices = max(split.sampler, split.trainer)
    yield StageTime("evaluate", planner.evaluate(split), devices, None, planner.evaluation_bound(split))


def _memory(planner: Planner, split: Split) -> dict[str, Memory]:
    found = {
        "sampler": sampler_memory(planner.shape, planner.recipe, planner.device, planner.group, planner.assumed),
        "update": update_memory(
            planner.shape, planner.recipe, planner.work, planner.device, split.trainer, planner.assumed
        ),
    }
    if planner.judge is not None:
        found["judge"] = judge_memory(planner.judge, planner.device, planner.assumed)
    if planner.mode == "phased":
        # The engine sleeps while the update runs; a reward model stays.
        stays = found["judge"].parts["weights"] if planner.judge is not None else 0.0
        highest = max(found["sampler"].total, found["update"].total) + stays
        found["all, in turn"] = Memory({"at its highest": highest})
    return found


def _warnings(
    planner: Planner, split: Split, gpus: int, group: int, memory: dict[str, Memory], engine: Decoding
) -> Iterator[str]:
    recipe, device, work = planner.recipe, planner.device, planner.work
    for part, held in memory.items():
        if not held.fits(device):
            yield (
                f"{part}: {held.total / GB:.1f} GB a device, and the {device.name} has {device.memory_gb:.0f}: "
                f"{_REMEDIES[part]}"
            )
    if group > gpus:
        yield f"a sampling engine of this policy takes {group} devices of this kind, and there are {gpus}"
    elif left := split.sampler % planner.group:
        yield f"{left} of the sampler's devices are left over by engines of {planner.group} devices"
    if engine.limit == "KV cache" and engine.batch < recipe.sampling.max_sequences:
        wanted = recipe.sampling.cache_gib * recipe.sampling.max_sequences / engine.batch
        yield (
            f"the KV cache holds {engine.batch} sequences of the {recipe.sampling.max_sequences} that "
            f"sampling.max_sequences allows: sampling.cache_gib {wanted:.0f} would hold them all"
        )
    if planner.mode == "streaming" and not planner.update_streams:
        yield (
            f"the update waits for the last shard: with update.batch_order '{recipe.update.batch_order}', replay or "
            "people its steps are not known before; 'shards' without the other two lets it begin with the first shard"
        )
    if split.trainer > recipe.update.batch_size:
        yield (
            f"update.batch_size {recipe.update.batch_size} gives {split.trainer} ranks less than one preference each: "
            "those beyond it idle"
        )
    if recipe.sampling.engine == "transformers":
        yield "sampling.engine transformers is a plain loop, slower than the engine of this plan, which is vLLM"
    if work.asks_people:
        yield "people are asked, and the time that they take is in no plan"
    if work.judging.requests or work.held_out_judging.requests:
        yield f"an endpoint's reply is assumed to take {planner.assumed.request_seconds:g} s: give --request-seconds"


_REMEDIES = {
    "sampler": "lower sampling.cache_gib, or take more devices an engine (--group)",
    "judge": "take a smaller reward model",
    "update": "spread it over more devices, set update.gradient_checkpointing, train an adapter (update.lora), or "
    "lower update.token_budget",
    "all, in turn": "see the parts above, or give each its own devices (--mode streaming)",
}


def _per_engine(work: Workload, split: Split, group: int) -> int:
    engines = max(1, split.sampler // group)
    return -(-work.prompts // engines) * work.candidates


def _busy(stages: Sequence[StageTime], gpus: int, seconds: float) -> float:
    return min(1.0, sum(stage.seconds * stage.devices for stage in stages) / (gpus * seconds))
