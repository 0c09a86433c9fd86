"""How candidates are sampled."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config.base import Config, for_a_hash

OLD_NAMES = {"most_set_aside": "max_skipped_fraction"}
"""What fields were called in version 0.1.0; recipes may call them so, and hashes on disk do."""


FLOAT32_TOLERANCE = 1e-3
"""Two engines that compute in float32 differ by about 1e-6 nats per token on the same weights."""
BFLOAT16_TOLERANCE = 0.2
"""If one of them computes in bfloat16, each token is off by about 0.05 at random, and the worst answer by more."""


class SamplingConfig(Config):
    """How the candidates of a round are sampled from the current policy."""

    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="vllm, or the plain and slow transformers loop that tests use in its place"
    )
    prompts_per_round: int = Field(256, ge=1, le=10_000_000, description="prompts of one round (P)")
    candidates: int = Field(4, ge=2, le=256, description="candidates per prompt (K)")
    temperature: float = Field(1.0, gt=0, le=5, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus: smallest share of probability mass to sample from")
    max_tokens: int = Field(48, ge=1, le=131_072, description="longest answer, in tokens")
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
        description="longest sequence of the engine, in tokens; the model's own where empty",
    )
    handover_tolerance: float | None = Field(
        None,
        gt=0,
        le=10,
        description="largest difference to the trainer after a hand-over of weights, in nats per token; where empty "
        f"{FLOAT32_TOLERANCE:g}, or {BFLOAT16_TOLERANCE:g} if update.precision is bfloat16",
    )
    cache_gib: float = Field(1.0, gt=0, le=2000, description="memory of the engine's KV cache, in GiB")

    @property
    def held_out(self) -> "SamplingConfig":
        """How held-out prompts are answered: once each, from the whole distribution, as long as in training.

        One candidate is less than a recipe may ask for, as nothing could be compared.
        """
        return self.model_copy(update={"candidates": 1, "temperature": 1.0, "top_p": 1.0})

    @model_validator(mode="before")
    @classmethod
    def _takes_old_names(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        for old, new in OLD_NAMES.items():
            if old in content and new in content:
                raise ValueError(f"sampling.{old} is the old name of sampling.{new}: give one of them")
        return {OLD_NAMES.get(name, name): value for name, value in content.items()}

    @model_serializer(mode="wrap")
    def _hashes_old_names(self, fields: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        content: dict[str, Any] = fields(self)
        if for_a_hash(info):
            if "handover_tolerance" in content and content["handover_tolerance"] is None:
                content["handover_tolerance"] = FLOAT32_TOLERANCE  # as it was before it depended on the precision
            for old, new in OLD_NAMES.items():
                if new in content:
                    content[old] = content.pop(new)
        return content
