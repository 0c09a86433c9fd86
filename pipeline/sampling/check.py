"""Whether an engine computes a type of model as transformers does, asked before it starts."""

from typing import Any, Literal

from pipeline.errors import UnsupportedModelError
from pipeline.model.model_config import length_boundaries, rope_types
from pipeline.model.sampler_copy import SAMPLED_TIED, is_tied
from pipeline.packing.text_decoder import text_config


def check_engine(engine: Literal["vllm", "transformers"], model: Any, context: int) -> None:
    """Refuses by name what is known to be another policy in the engine than in the trainer.

    Args:
        context: tokens of the longest sequence of the run.

    Raises:
        UnsupportedModelError: the two would differ.
    """
    if engine != "vllm":
        return
    name = type(model).__name__
    if (limits := length_boundaries(model.config)) and limits[0] < context:
        raise UnsupportedModelError(
            f"{name} rotates sequences of more than {limits[0]} tokens in another way than shorter ones (LongRoPE), "
            f"and vLLM takes one way for all, by its context of {context}: set sampling.context to {limits[0]} or "
            "less, or sampling.engine to transformers"
        )
    if "dynamic" in rope_types(model.config):
        raise UnsupportedModelError(
            f"{name} has rotary positions of type 'dynamic', which vLLM stretches for short sequences too: set "
            "sampling.engine to transformers"
        )
    kind = text_config(model.config).model_type
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if kind in SAMPLED_TIED and not (is_tied(model.config.to_dict()) and head.weight is embeddings.weight):
        raise UnsupportedModelError(
            f"{name} has an output head of its own, and vLLM knows the type '{kind}' only with the embeddings as its "
            "head: set sampling.engine to transformers"
        )
