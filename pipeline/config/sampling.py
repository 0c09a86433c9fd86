"""How candidates are sampled."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SerializationInfo, field_serializer, model_validator

from pipeline.config.base import Config, Later, for_a_hash

Precision = Literal["float32", "bfloat16"]
AdapterServing = Literal["merged", "adapter", "auto"]

FLOAT32_TOLERANCE = 1e-3
"""Two engines that compute in float32 differ by about 1e-6 nats per token on the same weights."""
BFLOAT16_TOLERANCE = 0.2
"""If one of them computes in bfloat16, each token is off by about 0.05 at random, and the worst answer by more."""
VLLM_CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of attention heads; with another width vLLM 0.32 starts, and dies on the first prompt."""


class ThoughtMarks(Config):
    """The texts, or tokens, that a thought begins and ends with."""

    begin: str = Field(min_length=1, max_length=100, examples=["<think>"], description="what a thought begins with")
    end: str = Field(min_length=1, max_length=100, examples=["</think>"], description="what it ends with")

    @model_validator(mode="after")
    def _differ(self) -> "ThoughtMarks":
        if self.begin in self.end:
            raise ValueError(
                f"sampling.thought.end '{self.end}' contains sampling.thought.begin '{self.begin}', so that no thought "
                "would be told from an answer: give marks that differ"
            )
        return self


class SamplingConfig(Config):
    """How the completions of a round are sampled from the current policy."""

    OLD_NAMES: ClassVar[Mapping[str, str]] = {"most_set_aside": "max_skipped_fraction"}

    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="vllm, or the plain and slow transformers loop that tests use in its place"
    )
    prompts_per_round: int = Field(256, ge=1, le=10_000_000, description="prompts of one round (P)")
    candidates: int = Field(4, ge=2, le=256, description="completions per prompt (K)")
    temperature: float = Field(1.0, gt=0, le=5, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus: smallest share of probability mass to sample from")
    max_tokens: int = Field(48, ge=1, le=131_072, description="longest completion, in tokens")
    alarm_truncated: Annotated[float, Later(0.25)] = Field(
        0.25,
        ge=0,
        le=1,
        description="raise an alarm if a larger share of a round's completions is cut at max_tokens; one in four is "
        "enough for the preferences to be about what was cut",
    )
    shard_prompts: int = Field(128, ge=1, le=1_000_000, description="prompts in one shard, the unit that is committed")
    shards_in_flight: int = Field(
        2,
        ge=1,
        le=1024,
        description="shards that one engine works on at once, so that it never drains between two; with more than one "
        "thread on a CPU, 1 keeps samples the same to the last bit",
    )
    max_skipped_fraction: float = Field(
        0.05,
        ge=0,
        le=1,
        description="largest share of a round's prompts that may be skipped because the engine died three times on "
        "their shard; beyond it the run stops",
    )
    max_sequences: int = Field(256, ge=1, le=65_536, description="most sequences that the engine runs at once")
    context: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="longest sequence of the engine, in tokens; the model's own if empty",
    )
    handover_tolerance: float | None = Field(
        None,
        gt=0,
        le=10,
        description="largest difference to the trainer after a weight sync, in nats per token; if empty "
        f"{FLOAT32_TOLERANCE:g}, or {BFLOAT16_TOLERANCE:g} if one of the two computes in bfloat16",
    )
    precision: Annotated[Literal["float32", "bfloat16", "auto"] | None, Later(None)] = Field(
        None,
        description="of vLLM's weights and computation; auto: on a CPU bfloat16 if the processor multiplies it, else "
        "float32, and on a GPU update.precision; if empty auto, or float32 on a CPU if devices.cpu_threads is a number."
        " A run keeps that of its first round",
    )
    lora: Annotated[AdapterServing, Later("auto")] = Field(
        "auto",
        description="how vLLM samples from a policy whose adapter is trained. merged: each round's adapter is merged "
        "with its base, and all weights are loaded anew; adapter: the base stays, and a round brings its adapter "
        "alone; auto: adapter on a GPU if vLLM can serve it there, and merged on a CPU, where adapters are slow",
    )
    tensor_parallel: Annotated[int, Later(1)] = Field(
        1,
        ge=1,
        le=64,
        description="GPUs of one engine, over which vLLM splits the model; replicas on Ray have cluster.sampler.gpus",
    )
    cache_gib: float = Field(1.0, gt=0, le=2000, description="memory of an engine's KV cache, in GiB")
    thought: Annotated[ThoughtMarks | None, Later(None)] = Field(
        None,
        description="marks around what a policy thinks before it answers; if empty, the tokenizer's own, such as "
        "<think> and </think>, if it has some",
    )

    @property
    def held_out(self) -> "SamplingConfig":
        """Says how held-out prompts are answered: once each, from the whole distribution, as long as in training.

        A recipe may not ask for one candidate, as nothing could be compared.
        """
        return self.model_copy(update={"candidates": 1, "temperature": 1.0, "top_p": 1.0})

    def served(self, temperature: float, top_p: float) -> "SamplingConfig":
        """Says how held-out prompts are answered as one would serve: once each, and as long as in training.

        Args:
            temperature: 0 takes the likeliest token; the candidates of a round may not, as all would be the same.
        """
        return self.model_copy(update={"candidates": 1, "temperature": temperature, "top_p": top_p})

    @field_serializer("handover_tolerance")
    def _hashed_by_its_first_default(self, value: float | None, info: SerializationInfo) -> float | None:
        # In version 0.1.0 it did not depend on the precision.
        return FLOAT32_TOLERANCE if value is None and for_a_hash(info) else value
