"""Compiled decoder layers: the arithmetic around attention fused by `torch.compile`, on CPU and on GPU."""

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.errors import ConfigError, UnsupportedModelError


def compile_layers(model: Any) -> None:
    """Lets each decoder layer be compiled when it first runs; the weights keep their names and places.

    Packs differ in length, so the number of tokens stays a variable: the first two packs compile, the others do not.
    All layers share the result. Attention itself is left out, see `pipeline.packing.attention`.

    Raises:
        UnsupportedModelError: the model's layers cannot be told from its other parts.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not say which of its modules are layers: set update.compile to false"
        )
    for layer in layers:
        layer.compile(dynamic=True)


def check_compiler(device: str) -> None:
    """Compiles and runs a line: if that fails, the layers would fail too, in the first step.

    Raises:
        ConfigError: it failed.
    """
    try:
        with torch.compiler.config.patch(force_disable_caches=True):  # what was compiled earlier needs no compiler
            torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8, device=device))
    except Exception as error:
        torch.compiler.reset()
        raise ConfigError(
            "update.compile needs a working C++ compiler, and on a GPU Triton, and compiling one line failed "
            f"({str(error).strip().partition(chr(10))[0]}): install g++ or set CXX, or set update.compile to false"
        ) from error
