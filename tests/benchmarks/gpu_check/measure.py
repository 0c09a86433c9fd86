"""The update at the shapes of 0.5B and 7B models with random weights: tokens/s, model FLOP utilisation, peak memory.

Float32 master weights and moments, bfloat16 autocast, gradient checkpointing, fused AdamW. Needs a GPU to say anything;
tests run the same lines at tiny shapes on CPU. No GPU has run them so far.

Utilisation is that of arXiv:2204.02311, appendix B: floating-point operations that the mathematics needs, recomputed
activations not among them, over seconds times the peak of the device in bfloat16 without sparsity. For a step they are

    6 * (weights of layers) * tokens + 6 * V * D * answer tokens + 12 * layers * heads * width * (queries times keys)

where a prompt's tokens count once for all its answers, and a query's keys are those that it may see. Of a base that an
adapter leaves as it is no gradient is needed, so that 4 takes the place of 6; the adapter's own products are left out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.config import LoraConfig, UpdateConfig
from pipeline.dpo.types import PreferenceGroup, StepMetrics
from pipeline.dpo.update import RoundFacts, run_update
from pipeline.model.lora import Adapter

SEED = 11
PEAKS = {
    "A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12,
    "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12,
}  # fmt: skip
"""bfloat16 operations a second, dense, by a part of the device's name, as their makers state them."""


@dataclass(frozen=True)
class GpuShape:
    """A Qwen 2 of this size."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool

    def build(self, device: str) -> Any:
        torch.manual_seed(SEED)
        config = Qwen2Config(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=32768,
        )
        with torch.device(device):
            return Qwen2ForCausalLM(config)


SHAPES = (
    GpuShape("0.5B", 896, 4864, 24, 14, 2, 151_936, tied=True),
    GpuShape("7B", 3584, 18_944, 28, 28, 4, 152_064, tied=False),
)


@dataclass(frozen=True)
class GpuPlan:
    """``step_tokens``: about how many tokens an optimizer step processes, in packs of ``token_budget``.

    ``lora``: the adapter that is trained; all weights if None.
    """

    prompt: int = 512
    answer: int = 512
    step_tokens: int = 65_536
    token_budget: int = 16_384
    steps: int = 4
    lora: LoraConfig | None = None
    optimizer: str = "adamw"

    def settings(self, candidates: int, batch_size: int) -> UpdateConfig:
        return UpdateConfig(
            objective={"sigmoid" if candidates == 2 else "plackett_luce": 1.0},
            lora=self.lora,
            optimizer=self.optimizer,
            learning_rate=1e-6,
            epochs=self.steps,
            batch_size=batch_size,
            token_budget=self.token_budget,
            precision="bfloat16",
            gradient_checkpointing=True,
        )


@dataclass(frozen=True)
class GpuFigures:
    """Of an optimizer step; ``peak_bytes`` is None on a CPU."""

    preferences: int
    tokens: int
    seconds: float
    flops: float
    peak_bytes: int | None
    token_budget: int


def preferences(plan: GpuPlan, candidates: int, vocabulary: int) -> list[PreferenceGroup]:
    draw = random.Random(SEED)

    def ids(length: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(length)]

    count = max(1, round(plan.step_tokens / (plan.prompt + candidates * plan.answer)))
    return [
        PreferenceGroup(
            prompt_id=f"prompt-{row}",
            prompt_token_ids=ids(plan.prompt),
            candidate_token_ids=[ids(plan.answer) for _ in range(candidates)],
            reference_logps=[0.0] * candidates,
        )
        for row in range(count)
    ]


def step_flops(shape: GpuShape, groups: Sequence[PreferenceGroup], *, lora: bool = False) -> float:
    """Operations of a forward and a backward pass, by the formula at the top."""
    width = shape.hidden // shape.heads
    projections = shape.hidden * width * (2 * shape.heads + 2 * shape.key_heads)
    weights = shape.layers * (projections + 3 * shape.hidden * shape.intermediate)
    tokens = sum(group.packed_tokens for group in groups)
    answers = sum(len(answer) for group in groups for answer in group.candidate_token_ids)
    pairs = 0
    for group in groups:
        prompt = len(group.prompt_token_ids)
        pairs += prompt * (prompt + 1) // 2
        for answer in group.candidate_token_ids:
            inputs = len(answer) - 1
            pairs += inputs * prompt + inputs * (inputs + 1) // 2
    attention = 12 * shape.layers * shape.heads * width * pairs
    passes = 4 if lora else 6
    return passes * (weights * tokens + shape.vocabulary * shape.hidden * answers) + attention


def measure(shape: GpuShape, plan: GpuPlan, candidates: int, device: str) -> GpuFigures:
    """Takes the plan's steps, and returns what one after the first took."""
    groups = preferences(plan, candidates, shape.vocabulary)
    settings = plan.settings(candidates, len(groups))
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    ends: list[float] = []

    def on_step(_: StepMetrics) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        ends.append(perf_counter())

    model = shape.build(device)
    if plan.lora is not None:
        Adapter(model, plan.lora, seed=SEED)
    facts = RoundFacts(reference_is_start=False)
    result = run_update(model, groups, settings, seed=SEED, facts=facts, on_step=on_step)
    return GpuFigures(
        preferences=len(groups),
        tokens=result.steps[-1].tokens,
        # The first step compiles attention and allocates the moments.
        seconds=(ends[-1] - ends[0]) / (len(ends) - 1),
        flops=step_flops(shape, groups, lora=plan.lora is not None),
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        token_budget=result.token_budget,
    )


def peak_of(name: str) -> float | None:
    """Returns the peak operations a second of a device of this name; None if it is not known."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)
