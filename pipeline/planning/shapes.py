"""The size of a model: how many weights of which kind, from the fields of its configuration."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from pipeline.config import WarmStartPolicy
from pipeline.errors import ConfigError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # grouped attention and a gated MLP, all layers alike
_FIELDS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class ModelShape:
    """A causal language model of such a family, without norms and biases, which are less than 0.1% of its weights.

    ``query`` and ``key_value`` are widths of all heads together; ``tied``: embeddings and head are one matrix;
    ``half``: its own files have weights of 2 bytes, as those of published models.
    """

    layers: int
    hidden: int
    query: int
    key_value: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    _: KW_ONLY
    half: bool = True

    @property
    def layer(self) -> int:
        """Counts the weights of a layer: queries, keys, values, output, and the three matrices of the MLP."""
        return self.hidden * (2 * self.query + 2 * self.key_value + 3 * self.intermediate)

    @property
    def embedding(self) -> int:
        """Counts the weights of the embeddings; the head has as many."""
        return self.vocabulary * self.hidden

    @property
    def multiplied(self) -> int:
        """Counts the weights that a token is multiplied with: layers and head, as embeddings are looked up."""
        return self.layers * self.layer + self.embedding

    @property
    def parameters(self) -> int:
        """Counts all weights."""
        return self.multiplied + (0 if self.tied else self.embedding)

    def kv_bytes(self, element_bytes: int) -> int:
        """Counts the bytes of a token in the KV cache: a key and a value in each layer."""
        return 2 * self.layers * self.key_value * element_bytes

    def adapter(self, rank: int) -> int:
        """Counts the weights of an adapter on all linear layers, which is an upper bound if it names modules."""
        return self.layers * rank * (7 * self.hidden + 2 * self.query + 2 * self.key_value + 3 * self.intermediate)


def shape_of_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """Reads the shape of a model from its ``config.json``; ConfigError if its weights cannot be counted."""
    if (family := config.get("model_type")) not in FAMILIES:
        raise ConfigError(
            f"the weights of '{name}', of type '{family}', cannot be counted: take one of {', '.join(FAMILIES)}"
        )
    if missing := [field for field in _FIELDS if field not in config]:
        raise ConfigError(f"the configuration of '{name}' has no {missing[0]}: take a model whose config.json has it")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head, groups = config.get("head_dim") or hidden // heads, config.get("num_key_value_heads") or heads
    return ModelShape(
        config["num_hidden_layers"], hidden, heads * head, groups * head, config["intermediate_size"],
        config["vocab_size"], bool(config.get("tie_word_embeddings", False)),
        half=config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16"),
    )  # fmt: skip


def shape_of_warm_start(config: WarmStartPolicy) -> ModelShape:
    """Gives the shape of the policy that a warm start trains, if its tokenizer fills the vocabulary."""
    hidden = config.hidden_size
    return ModelShape(config.layers, hidden, hidden, hidden, config.intermediate_size, config.vocabulary)


KNOWN_SHAPES = {
    "HuggingFaceTB/SmolLM2-135M": ModelShape(30, 576, 576, 192, 1536, 49_152, tied=True),
    "Qwen/Qwen2.5-0.5B": ModelShape(24, 896, 896, 128, 4864, 151_936, tied=True),
    "Qwen/Qwen2.5-7B": ModelShape(28, 3584, 3584, 512, 18_944, 152_064),
    "Qwen/Qwen2.5-32B": ModelShape(64, 5120, 5120, 1024, 27_648, 152_064),
    "Qwen/Qwen3-0.6B": ModelShape(28, 1024, 2048, 1024, 3072, 151_936, tied=True),
    "Qwen/Qwen3-8B": ModelShape(36, 4096, 4096, 1024, 12_288, 151_936),
    "meta-llama/Llama-3.1-8B": ModelShape(32, 4096, 4096, 1024, 14_336, 128_256),
    "meta-llama/Llama-3.1-70B": ModelShape(80, 8192, 8192, 1024, 28_672, 128_256),
}  # from the config.json beside the weights of published models
