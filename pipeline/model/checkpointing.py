"""Gradient checkpointing without training mode: activations are computed again in the backward pass, dropout stays off.

`transformers` computes a layer again only while the layer trains. In training mode some layers apply dropout by
themselves, and routers add noise, so that the policy would differ from the reference, at random. Here a layer is
in training mode only while that question is asked, and in evaluation mode whenever it computes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.errors import UnsupportedModelError


def recompute_layers(model: Any) -> None:
    """Lets each layer be computed again in the backward pass, until `evaluate_plainly` is called.

    Raises:
        UnsupportedModelError: the model does not say which of its modules are layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not say which of its modules are layers: set update.gradient_checkpointing "
            "to false"
        )
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        layer._gradient_checkpointing_func = partial(_recomputed, layer)


def evaluate_plainly(model: Any) -> None:
    """Puts the whole model into evaluation mode, with nothing computed again."""
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = False


def _recomputed(layer: torch.nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """Runs ``function``, the layer's own forward pass, now and when the backward pass asks for it again."""
    return checkpoint(partial(_in_evaluation, layer, function), *inputs, use_reentrant=False)


def _in_evaluation(layer: torch.nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    layer.training = False
    try:
        return function(*inputs)
    finally:
        layer.training = True
