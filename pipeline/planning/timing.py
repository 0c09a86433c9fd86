"""Seconds of each part of a round: what must be read, multiplied and sent, over what devices do."""

from dataclasses import dataclass
from math import ceil

from pipeline.config import Recipe
from pipeline.planning.constants import ASSUMED, GIB, Assumptions, Device
from pipeline.planning.memory import FLOAT, HALF, pack_tokens, step_tokens
from pipeline.planning.shapes import ModelShape
from pipeline.planning.workload import JudgeWork, Workload

DISPLACEMENT_SAMPLE = 128
"""Preferences that an update measures again after its last step (``pipeline/dpo/update.py``)."""


@dataclass(frozen=True)
class Decoding:
    """How one sampling engine decodes.

    Attributes:
        batch: sequences at a time.
        limit: what limits them: the recipe's max_sequences, the KV cache, or that there are no more.
        step: seconds of a step, which gives each of them a token.
        bound: what most of a step is: bandwidth of the memory, compute, host (vLLM's own work), or links.
        parts: the seconds of a step by what they go to.
    """

    batch: int
    limit: str
    step: float
    bound: str
    parts: dict[str, float]


@dataclass(frozen=True)
class UpdateTime:
    """The seconds of an update, by what they go to."""

    compute: float
    communication: float
    optimizer: float
    host: float
    reference: float
    read: float
    write: float

    @property
    def steps(self) -> float:
        """The optimizer steps alone. Sending overlaps with computing, so the longer of the two counts."""
        return max(self.compute, self.communication) + self.optimizer + self.host

    @property
    def total(self) -> float:
        """With the passes that score, reading the weights to begin with, and writing the checkpoint."""
        return self.steps + self.reference + self.read + self.write

    @property
    def bound(self) -> str:
        """What most of it goes to."""
        parts = {
            "compute": self.compute if self.compute >= self.communication else 0.0,
            "links between ranks": self.communication if self.communication > self.compute else 0.0,
            "optimizer": self.optimizer, "host": self.host, "scoring": self.reference,
            "store": self.read + self.write,
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


def decoding(
    shape: ModelShape, recipe: Recipe, work: Workload, device: Device, group: int, sequences: int,
    assumed: Assumptions = ASSUMED,
) -> Decoding:  # fmt: skip
    """A decoding step reads all weights once for the whole batch, and the keys and values of every sequence.

    The batch is at most what the recipe allows, what the KV cache holds at the answers' full length, and what there is.

    Args:
        group: devices of an engine, over which weights, cache and products are spread.
        sequences: that the engine has to sample.
    """
    device = device.computing_in(recipe.update.precision)
    token = shape.kv_bytes(device.element_bytes)
    room = recipe.sampling.cache_gib * GIB * group / (token * (_shared(work, device) + work.answer_tokens))
    limits = {"sequences": sequences, "max_sequences": recipe.sampling.max_sequences, "KV cache": int(room)}
    limit = min(limits, key=lambda name: limits[name])
    batch = max(1, limits[limit])
    # On average an answer is half done.
    read = shape.multiplied * device.element_bytes + batch * (work.prompt_tokens + work.answer_tokens / 2) * token
    parts = {
        "bandwidth": read / (group * device.bandwidth * assumed.bandwidth_efficiency),
        "compute": 2 * shape.multiplied * batch / (group * device.flops * assumed.decode_efficiency),
        "host": assumed.step_seconds + batch * (assumed.sequence_seconds + shape.vocabulary * device.logit_seconds),
        "links": _reductions(shape, batch, device, group, assumed),
    }
    step = max(parts["bandwidth"], parts["compute"]) + parts["host"] + parts["links"]
    return Decoding(batch, limit, step, max(parts, key=lambda name: parts[name]), parts)


def sample_seconds(
    shape: ModelShape, recipe: Recipe, work: Workload, device: Device, *, engines: int, group: int,
    held_out: bool = False, assumed: Assumptions = ASSUMED,
) -> float:  # fmt: skip
    """Sampling all answers of a round, or one to each held-out prompt, on so many engines of ``group`` devices."""
    device = device.computing_in(recipe.update.precision)
    candidates = 1 if held_out else work.candidates
    prompts = ceil((work.held_out if held_out else work.prompts) / engines)
    sequences = prompts * candidates
    steps = decoding(shape, recipe, work, device, group, sequences, assumed)
    shared = work.prompt_tokens // device.cache_block * device.cache_block
    prefilled = prompts * (shared + candidates * (work.prompt_tokens - shared))
    prefill = 2 * shape.multiplied * prefilled / (group * device.flops * assumed.prefill_efficiency)
    return prefill + steps.step * work.answer_tokens * max(1.0, sequences / steps.batch)


def judge_seconds(
    judging: JudgeWork, answers: int, work: Workload, model: ModelShape | None, policy: ModelShape, device: Device,
    gpus: int, assumed: Assumptions = ASSUMED,
) -> float:  # fmt: skip
    """Judging so many answers: for each model a pass over prompt and answer, 2 N operations a token; rules; requests.

    Judges of one ensemble work one after the other.
    """
    tokens = answers * (work.prompt_tokens + work.answer_tokens)
    weights = judging.policies * policy.multiplied + (judging.models * model.multiplied if model else 0)
    passes = 2 * weights * tokens / (max(1, gpus) * device.flops * assumed.prefill_efficiency)
    requests = answers * judging.requests * assumed.request_seconds / max(1, judging.concurrency)
    return passes + answers * judging.rules * assumed.rule_seconds + requests


def update_seconds(
    shape: ModelShape, recipe: Recipe, work: Workload, device: Device, ranks: int, assumed: Assumptions = ASSUMED
) -> UpdateTime:
    """Passes forward and backward: 6 N operations a token, 8 N where layers are computed again; an adapter's 4 N, 6 N.

    A step takes as long as the rank with the most tokens. In each pass FSDP gathers the weights twice and sums the
    gradients once.
    """
    update, lora = recipe.update, recipe.update.lora
    steps = optimizer_steps(recipe, work)
    tokens = step_tokens(recipe, work, ranks)
    operations = (6 if lora is None else 4) + (2 if update.gradient_checkpointing else 0)
    flops = device.computing_in(update.precision).flops
    compute = steps * operations * shape.multiplied * tokens / (flops * assumed.update_efficiency)
    passes = ceil(tokens / max(1.0, pack_tokens(recipe, work, ranks)))
    trained = trained_weights(shape, recipe)
    element = HALF if update.precision == "bfloat16" else FLOAT
    sent = (2 * element * shape.parameters + FLOAT * trained) * (ranks - 1) / ranks
    link = device.link if ranks <= device.per_node else device.network
    all_tokens = work.preferences * work.preference_tokens
    # On a GPU two engines differ in the last digits of bfloat16, so that the trainer scores the answers itself; else it
    # compares on the first step's preferences.
    scored = all_tokens
    if update.reference_logprobs == "sampler":
        scored = 0.0
    elif update.reference_logprobs == "auto" and device.is_cpu and update.reference == "previous":
        scored = min(update.batch_size, work.preferences) * work.preference_tokens
    scored += min(DISPLACEMENT_SAMPLE, work.preferences) * work.preference_tokens
    forward = 2 * shape.multiplied / (flops * assumed.prefill_efficiency)
    # Weights and two moments are read and written, gradients read twice and written once: 9 times 4 bytes.
    optimizer = 9 * FLOAT * trained / (ranks * device.bandwidth * assumed.bandwidth_efficiency)
    return UpdateTime(
        compute=compute,
        communication=0.0 if ranks == 1 else steps * passes * sent / (link * assumed.link_efficiency),
        optimizer=steps * optimizer,
        host=steps * assumed.update_step_seconds,
        reference=forward * scored / ranks,
        read=FLOAT * trained / assumed.store_bandwidth,  # an adapter's base stays in place
        write=FLOAT * trained / assumed.store_bandwidth,
    )


def hand_over_seconds(shape: ModelShape, recipe: Recipe, assumed: Assumptions = ASSUMED) -> float:
    """Reading the new weights from the store; every engine reads at the same time, from a disk or cache of its own.

    A policy with tied embeddings is first copied with a head of its own, and an adapter first merged into its base.
    """
    weights = FLOAT * shape.parameters
    moved = weights
    if shape.tied:
        moved += 2 * (weights + FLOAT * shape.embedding)
    elif recipe.update.lora is not None:
        moved += 2 * weights
    return assumed.handover_seconds + moved / assumed.store_bandwidth


def score_seconds(
    shape: ModelShape, recipe: Recipe, work: Workload, device: Device, ranks: int, assumed: Assumptions = ASSUMED
) -> float:
    """The held-out answers under three policies; two of them are read from the store, the new one is in place.

    Of policies that are adapters, only these are read.
    """
    tokens = work.held_out * (work.prompt_tokens + work.answer_tokens)
    flops = device.computing_in(recipe.update.precision).flops
    passes = 3 * 2 * shape.multiplied * tokens / (ranks * flops * assumed.prefill_efficiency)
    return passes + 2 * FLOAT * trained_weights(shape, recipe) / assumed.store_bandwidth


def optimizer_steps(recipe: Recipe, work: Workload) -> int:
    """Steps of a round's update, over all epochs."""
    return recipe.update.epochs * ceil(work.preferences / recipe.update.batch_size)


def trained_weights(shape: ModelShape, recipe: Recipe) -> int:
    """Weights that the update changes, and that a checkpoint has."""
    lora = recipe.update.lora
    return shape.parameters if lora is None else shape.lora_parameters(lora)


def _shared(work: Workload, device: Device) -> float:
    """Tokens of a prompt in the KV cache, for each of its candidates: whole blocks are shared by all."""
    shared = work.prompt_tokens // device.cache_block * device.cache_block
    return shared / work.candidates + (work.prompt_tokens - shared)


def _reductions(shape: ModelShape, batch: int, device: Device, group: int, assumed: Assumptions) -> float:
    """Tensor parallelism sums the hidden states twice in each layer, around a ring."""
    if group == 1:
        return 0.0
    moved = 2 * (group - 1) / group * batch * shape.hidden * device.element_bytes
    link = device.link if group <= device.per_node else device.network
    return 2 * shape.layers * (assumed.reduce_seconds + moved / (link * assumed.link_efficiency))
