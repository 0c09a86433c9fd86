"""What a model's configuration says of lengths and logits, read where its type keeps it.

A model with pictures or sound beside text keeps that of its text model in ``text_config``; types name the same thing
differently; and some names are in attributes alone, not in the file.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.packing.text_decoder import text_config

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
"""Names of the longest sequence that a model can read; the first one that a configuration has counts."""

_LENGTH_NAME = re.compile("position|window|chunk|length|seq|block|local|context|floor|span|stride|top_?k|segment")
_SHORTEST = 4
"""Numbers below are no lengths that a type tells sequences apart by, but counts of layers, experts and the like."""


def context_limits(config: Any) -> dict[str, int]:
    """Finds names and tokens of what bounds a sequence; empty if nothing does.

    Attention in fixed chunks is exact up to the length of one chunk, in which it hides nothing.
    """
    text = text_config(config)
    found = {name: limit for name in CONTEXT_NAMES if (limit := _positive(getattr(text, name, None)))}
    limits = dict(list(found.items())[:1])
    if chunk := _positive(getattr(text, "attention_chunk_size", None)):
        limits["attention_chunk_size"] = chunk
    return limits


def named_lengths(config: Any) -> dict[int, str]:
    """Finds each length in tokens at which the type may begin to treat sequences in another way, and its name."""
    return {
        value: name
        for name, value in sorted(_numbers(text_config(config).to_dict()))
        if value >= _SHORTEST and _LENGTH_NAME.search(name)
    }


def length_boundaries(config: Any) -> tuple[int, ...]:
    """Lists the lengths in tokens up to which a whole sequence is rotated in one way, and beyond which in another.

    LongRoPE (arXiv:2402.13753) has a set of factors for either side. transformers chooses one for a whole forward pass.
    """
    text = text_config(config)
    found = {
        rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        for rope in _ropes(text)
        if rope.get("rope_type") == "longrope"
    }
    return tuple(sorted(limit for limit in found if isinstance(limit, int)))


def rope_types(config: Any) -> set[str]:
    """Lists the kinds of rotary positions that layers of the model have, by transformers' names."""
    return {str(rope["rope_type"]) for rope in _ropes(text_config(config)) if "rope_type" in rope}


def logit_scale(config: Any) -> float:
    """Returns the factor that turns the product of hidden state and head into logits; 1 for most types."""
    text = text_config(config)
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        if (factor := getattr(text, name, None)) is not None:
            scale *= float(factor)
    if (divisor := getattr(text, "logits_scaling", None)) is not None:
        # Of this one name HyperCLOVA X means a factor.
        scale = scale * float(divisor) if text.model_type == "hyperclovax" else scale / float(divisor)
    return scale


def caps_attention(config: Any) -> bool:
    """Says whether a cap bends the scores before the softmax: of the plain kernels, eager alone applies one."""
    return bool(getattr(text_config(config), "attn_logit_softcapping", None))


def logit_softcap(config: Any) -> float | None:
    """Returns the cap on the logits; None if there is none."""
    found: float | None = getattr(text_config(config), "final_logit_softcapping", None)
    return found


def special_token_ids(config: Any) -> set[int]:
    """Lists the ids that stand for a picture, an end and the like."""
    parts = (config.to_dict(), text_config(config).to_dict())
    return {value for part in parts for name, value in _numbers(part) if name.endswith(("token_id", "token_index"))}


def _ropes(text: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the settings of the rotary positions, and those in them for each type of layer, if there are any."""
    found = getattr(text, "rope_parameters", None) or {}
    yield found
    yield from (part for part in found.values() if isinstance(part, Mapping))


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in part.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif _positive(value):
            yield str(name), value


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
