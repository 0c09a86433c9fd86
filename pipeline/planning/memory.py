"""Bytes of memory that each part of a round takes on one device."""

from dataclasses import dataclass
from math import ceil

from pipeline.config import Recipe
from pipeline.planning.constants import ASSUMED, GIB, LOGITS_AT_ONCE, Assumptions, Device
from pipeline.planning.shapes import ModelShape
from pipeline.planning.workload import Workload

FLOAT, HALF = 4, 2


@dataclass(frozen=True)
class Memory:
    """What one device of a part holds, in bytes by what it is for."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    def fits(self, device: Device) -> bool:
        """Whether the device has so much, as far as that is known."""
        return device.memory is None or self.total <= device.memory


def sampler_memory(
    shape: ModelShape, recipe: Recipe, device: Device, group: int, assumed: Assumptions = ASSUMED
) -> Memory:
    """Of one of the ``group`` devices of a sampling engine: its slice of the weights, and its part of the KV cache.

    The head is a matrix of its own: where the policy's is tied to the embeddings, the sampler takes an untied copy.
    """
    head = shape.embedding if shape.tied else 0
    return Memory({
        "weights": (shape.parameters + head) * device.computing_in(recipe.update.precision).element_bytes / group,
        "KV cache": recipe.sampling.cache_gib * GIB,
        "activations": assumed.sampler_activations * (device.memory or 0.0),
        "framework": 0.0 if device.is_cpu else assumed.framework_bytes,
    })  # fmt: skip


def judge_memory(shape: ModelShape, device: Device, assumed: Assumptions = ASSUMED) -> Memory:
    """Of a reward model, in the precision of its checkpoint, which is half of float32 for published ones."""
    framework = 0.0 if device.is_cpu else 2 * assumed.framework_bytes  # as much again for a batch's activations
    return Memory({"weights": shape.parameters * HALF, "framework": framework})


def update_memory(
    shape: ModelShape, recipe: Recipe, work: Workload, device: Device, ranks: int, assumed: Assumptions = ASSUMED
) -> Memory:
    """Of one of the ranks of an update: what FSDP cuts into pieces, and what is whole while it computes.

    Master weights, gradients and AdamW's moments are float32 (moments of 8 bits: 2 bytes a weight), one piece a rank.
    Of several ranks, two layers (one computes, the next arrives), and what is outside of the layers in float32 with its
    gradient, are whole. One rank in bfloat16 keeps a bfloat16 copy of all weights for the backward pass. Activations
    are counted at one pack of ``token_budget`` tokens, or of the step's where these are fewer.
    """
    update = recipe.update
    trained = shape.parameters if update.lora is None else shape.lora_parameters(update.lora)
    moment = FLOAT if update.optimizer == "adamw" else 1
    half = update.precision == "bfloat16"
    compute = HALF if half else FLOAT
    parts = {
        "weights": FLOAT * shape.parameters / ranks + (FLOAT * trained / ranks if update.lora is not None else 0.0),
        "gradients": FLOAT * trained / ranks,
        "moments": 2 * moment * trained / ranks,
    }
    if ranks > 1:
        gradients = FLOAT if update.lora is None else 0
        parts["gathered"] = shape.layer * (2 * compute + gradients) + shape.outside * (FLOAT + gradients)
    elif half:
        parts["bfloat16 copy"] = HALF * shape.parameters
    parts["activations"] = pack_tokens(recipe, work, ranks) * activation_bytes(recipe, shape)
    if not device.is_cpu:
        # Logits in float32, their gradient beside them, and the head's gradient in float32.
        parts["logits"] = 2 * FLOAT * LOGITS_AT_ONCE + (FLOAT * shape.embedding if update.lora is None else 0)
        parts["framework"] = assumed.framework_bytes
    return Memory(parts)


def activation_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Bytes that the backward pass needs of a token, over all layers.

    Of a layer of width h, with queries q, keys k and MLP m wide: 24 h + 12 (q + k) + 16 m in float32. With bfloat16,
    where the residual stream and the norms stay float32, 26 h + 6 (q + k) + 8 m; counted from what autograd saves of a
    Llama-shaped layer (``tests/pipeline/planning/test_planning.py`` counts again). With gradient checkpointing only a
    layer's input, in float32, is kept of all layers, and one layer is computed anew at a time.
    """
    wide = shape.query + shape.key_value
    if recipe.update.precision == "bfloat16":
        layer = 26 * shape.hidden + 6 * wide + 8 * shape.intermediate
    else:
        layer = 24 * shape.hidden + 12 * wide + 16 * shape.intermediate
    if recipe.update.gradient_checkpointing:
        return FLOAT * shape.hidden * shape.layers + layer
    return float(layer * shape.layers)


def step_tokens(recipe: Recipe, work: Workload, ranks: int) -> float:
    """Tokens of an optimizer step on the rank that has most of them: whole preferences, evenly spread."""
    batch = min(recipe.update.batch_size, work.preferences)
    return ceil(batch / ranks) * work.preference_tokens


def pack_tokens(recipe: Recipe, work: Workload, ranks: int) -> float:
    """Tokens of the largest pass: at most the recipe's budget."""
    return min(float(recipe.update.token_budget), step_tokens(recipe, work, ranks))
