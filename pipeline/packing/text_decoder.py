"""The part of a causal language model that reads text, and its configuration: of a wrapper, what is inside."""

from typing import Any

from pipeline.errors import UnsupportedModelError


def text_config(config: Any) -> Any:
    """Returns the configuration of the text model, which may be all of it."""
    return config.get_text_config(decoder=True)


def text_decoder(model: Any) -> Any:
    """Finds the layers that read text, without the head, and without what a wrapper has beside them.

    Raises:
        UnsupportedModelError: the model does not say which part of it that is.
    """
    base = model.base_model if model.base_model is not model else getattr(model, "model", None)
    if base is not None and base.config is not text_config(model.config):
        base = base.get_decoder()
    if base is None or base is model:
        raise UnsupportedModelError(f"{type(model).__name__} does not say where its layers are: use another model")
    return base
