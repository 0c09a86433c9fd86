"""Gradient checkpointing without training mode: activations are computed again in the backward pass, dropout stays off.

`transformers` computes a layer again only while the layer trains. In training mode some layers apply dropout by
themselves, and routers add noise, so that the policy would differ from the reference, at random. Here a layer is
in training mode only while that question is asked, and in evaluation mode whenever it computes.

Under autocast a layer's input, which waits for the backward pass, is kept in autocast's precision: half the bytes, as
the stream between layers is float32. The forward pass is what it was. What is computed again begins with a rounded
input: one rounding more, beside those of the layer's own products. A layer with experts keeps its input as it is. From
a rounded one a token could go to another expert than before, and the two passes would not fit together.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
        layer._gradient_checkpointing_func = partial(_recomputed, layer, _has_experts(layer))


def evaluate_plainly(model: Any) -> None:
    """Puts the whole model into evaluation mode, with nothing computed again."""
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = False


def _has_experts(layer: torch.nn.Module) -> bool:
    return any("expert" in f"{name} {type(part).__name__}".lower() for name, part in layer.named_modules())


def _recomputed(layer: torch.nn.Module, exact: bool, function: Callable[..., Any], *inputs: Any) -> Any:
    """Runs ``function``, the layer's own forward pass, now and when the backward pass asks for it again.

    The first input is the stream between layers, which `checkpoint` saves; it may be rounded unless ``exact``. The
    others, such as masks and positions, are the same in many layers, and are held as they are.
    """
    stream, others = inputs[:1], inputs[1:]
    with nullcontext() if exact or not stream else _kept_narrow(*stream):
        return checkpoint(partial(_in_evaluation, layer, function, others), *stream, use_reentrant=False)


def _kept_narrow(stream: torch.Tensor) -> AbstractContextManager[None]:
    """Lets autograd save a tensor in the precision of autocast; what the layer itself saves is not touched.

    For that `checkpoint` has hooks of its own, and of several the innermost ones count.
    """
    device, dtype = stream.device.type, stream.dtype
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    narrow = torch.get_autocast_dtype(device)
    hooks: AbstractContextManager[None] = torch.autograd.graph.saved_tensors_hooks(
        lambda wide: wide.to(narrow), lambda kept: kept.to(dtype)
    )
    return hooks


def _in_evaluation(layer: torch.nn.Module, function: Callable[..., Any], others: tuple[Any, ...], *stream: Any) -> Any:
    layer.training = False
    try:
        return function(*stream, *others)
    finally:
        layer.training = True
