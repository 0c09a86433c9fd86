"""The size of a policy: how many weights of which kind, from the fields of its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import LoraConfig, WarmStartPolicy
from pipeline.errors import ConfigError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose weights are counted here: grouped attention and a gated MLP, all layers alike."""


@dataclass(frozen=True)
class ModelShape:
    """A causal language model with grouped-query attention and a gated MLP.

    Attributes:
        query: width of all attention heads together.
        key_value: width of all key heads together, which is that of the value heads.
        vectors: weights of a layer that are no matrix: gains of norms, biases.
        tied: whether input embeddings and output head are one matrix.
        counted: the number of weights, where somebody gave it; else it follows from the rest.
    """

    name: str
    layers: int
    hidden: int
    query: int
    key_value: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    vectors: int = 0
    counted: int | None = None

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the linear maps of a layer."""
        return (
            (self.hidden, self.query),
            (self.hidden, self.key_value),
            (self.hidden, self.key_value),
            (self.query, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        return sum(inputs * outputs for inputs, outputs in self.matrices) + self.vectors

    @property
    def embedding(self) -> int:
        """Weights of the embeddings, and as many of the head."""
        return self.vocabulary * self.hidden

    @property
    def outside(self) -> int:
        """Weights outside of the layers: embeddings, head, last norm."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.counted if self.counted is not None else self.layers * self.layer + self.outside

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied with: all, the head included, but the embeddings, which are looked up."""
        return self.parameters - (0 if self.tied else self.embedding)

    def kv_bytes(self, element_bytes: int) -> int:
        """Bytes of a token in the KV cache: a key and a value in each layer."""
        return 2 * self.layers * self.key_value * element_bytes

    def lora_parameters(self, config: LoraConfig) -> int:
        """Weights of an adapter on these linear layers; where it names modules, an upper bound: that on all."""
        return self.layers * config.rank * sum(inputs + outputs for inputs, outputs in self.matrices)


def shape_of_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape of a model from its ``config.json``.

    Raises:
        ConfigError: it is of a family whose weights are not counted here, or lacks a field.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"the weights of '{name}', of type '{family}', cannot be counted (only those of {', '.join(FAMILIES)}): "
            "give --parameters, --layers and --hidden"
        )
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        query, key_value = heads * head, (config.get("num_key_value_heads") or heads) * head
        intermediate = config["intermediate_size"]
        layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
    except KeyError as missing:
        raise ConfigError(f"the configuration of '{name}' has no field {missing}: correct its config.json") from None
    vectors = 2 * hidden
    if family == "qwen3":
        vectors += 2 * head  # norms of queries and keys, one gain for all heads
    if family == "qwen2" or config.get("attention_bias"):
        vectors += query + 2 * key_value
        vectors += hidden if config.get("attention_bias") else 0  # Qwen2's output projection has none
    if config.get("mlp_bias"):
        vectors += 2 * intermediate + hidden
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(name, layers, hidden, query, key_value, intermediate, vocabulary, tied, vectors)


def shape_of_warm_start(config: WarmStartPolicy) -> ModelShape:
    """The shape of the policy that a warm start trains, if its tokenizer fills the vocabulary."""
    hidden = config.hidden_size
    return ModelShape(
        "warm start", config.layers, hidden, hidden, hidden, round(hidden * 8 / 3 / 16) * 16, config.vocabulary,
        vectors=2 * hidden,
    )  # fmt: skip


def shape_by_numbers(
    parameters: float, layers: int, hidden: int, key_value: int | None = None, vocabulary: int = 128_256
) -> ModelShape:
    """A model of which little is known: so many weights, layers, and this width.

    Without ``key_value`` its keys are a quarter as wide as its queries, as of most models of 7B and more; its MLP takes
    the weights that are left.

    Raises:
        ConfigError: attention and embeddings alone have more weights than that.
    """
    width = key_value or max(1, hidden // 4)
    attention = hidden * (2 * hidden + 2 * width)
    intermediate = round((parameters - 2 * vocabulary * hidden - layers * attention) / (3 * layers * hidden))
    if intermediate < 1:
        raise ConfigError(
            f"{parameters:g} parameters leave nothing for the MLP of {layers} layers of width {hidden} with a "
            f"vocabulary of {vocabulary:,}: correct --parameters, --layers, --hidden or --vocabulary"
        )
    return ModelShape(
        f"{parameters / 1e9:.3g}B", layers, hidden, hidden, width, intermediate, vocabulary, counted=round(parameters)
    )


def _qwen2(name: str, layers: int, hidden: int, heads: int, groups: int, intermediate: int, vocabulary: int,
           *, tied: bool = False) -> ModelShape:  # fmt: skip
    fields = {
        "model_type": "qwen2", "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    return shape_of_config(fields, name)


KNOWN_SHAPES = {
    shape.name: shape
    for shape in (
        _qwen2("qwen2.5-0.5b", 24, 896, 14, 2, 4864, 151_936, tied=True),
        _qwen2("qwen2.5-1.5b", 28, 1536, 12, 2, 8960, 151_936, tied=True),
        _qwen2("qwen2.5-3b", 36, 2048, 16, 2, 11_008, 151_936, tied=True),
        _qwen2("qwen2.5-7b", 28, 3584, 28, 4, 18_944, 152_064),
        _qwen2("qwen2.5-14b", 48, 5120, 40, 8, 13_824, 152_064),
        _qwen2("qwen2.5-32b", 64, 5120, 40, 8, 27_648, 152_064),
        ModelShape("qwen3-0.6b", 28, 1024, 2048, 1024, 3072, 151_936, True, 2 * 1024 + 2 * 128),
        ModelShape("qwen3-8b", 36, 4096, 4096, 1024, 12_288, 151_936, False, 2 * 4096 + 2 * 128),
        ModelShape("llama-3-8b", 32, 4096, 4096, 1024, 14_336, 128_256, False, 2 * 4096),
        ModelShape("llama-3-70b", 80, 8192, 8192, 1024, 28_672, 128_256, False, 2 * 8192),
    )
}
"""Shapes of published models, from the ``config.json`` beside their weights: for hub ids where no hub is reached."""


def known_shape(path: str) -> ModelShape | None:
    """The published shape of a hub id such as ``Qwen/Qwen2.5-7B-Instruct``, where it is one of those above."""
    name = path.rpartition("/")[2].lower().replace("llama-3.1-", "llama-3-")
    found = [known for known in KNOWN_SHAPES if known in name]
    return KNOWN_SHAPES[max(found, key=len)] if found else None
