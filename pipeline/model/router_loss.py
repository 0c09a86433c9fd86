"""The balancing loss of a mixture of experts: small if all experts of a layer get equally many tokens.

It is the loss of the Switch Transformer (arXiv:2101.03961, equations 4 to 6), in the form that `transformers` has for
the model's type. It is taken over the tokens of one preference, its prompt counted once. Each preference has its own,
so that nothing depends on what else is in a pack or on a rank.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.packing.packing import Pack
from pipeline.packing.text_decoder import text_decoder

_LOSS = "load_balancing_loss_func"


def check_router(model: Any) -> None:
    """Raises ConfigError unless `transformers` knows a balancing loss for the model."""
    sizes = [getattr(model, name, None) for name in ("num_experts", "num_experts_per_tok")]
    if _loss_of(model) is None or not all(isinstance(size, int) for size in sizes):
        raise ConfigError(
            f"update.router_loss_weight is set, and transformers has no balancing loss for {type(model).__name__}: "
            "set it to 0, or use a mixture of experts that has one, such as Mixtral or Qwen3-MoE"
        )


@contextmanager
def keep_router_logits(model: Any, *, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Lets a forward pass of this block leave its routers' logits, ``[T, E]`` for each layer that has a router.

    The list stays empty if they are not wanted.
    """
    kept: list[Tensor] = []
    if not wanted:
        yield kept
        return

    def ask(_module: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**named, "output_router_logits": True}

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept[:] = [logits.flatten(0, -2) for logits in output.router_logits]

    body = text_decoder(model)
    hooks = [body.register_forward_pre_hook(ask, with_kwargs=True), body.register_forward_hook(keep)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def router_losses(model: Any, logits: list[Tensor], pack: Pack) -> Tensor:
    """Computes the balancing loss of each group of a pack, shape ``[P]``, differentiable in the logits."""
    loss = _loss_of(model)
    assert loss is not None
    _, sizes = torch.unique_consecutive(pack.prompt_T, return_counts=True)
    tokens = len(pack.prompt_T)  # without what the pass was padded with
    by_group = zip(*(layer[:tokens].split(sizes.tolist()) for layer in logits), strict=True)
    return torch.stack([loss(layers, model.num_experts, model.num_experts_per_tok) for layers in by_group])


def _loss_of(model: Any) -> Callable[..., Tensor] | None:
    """Finds the loss function in the file of the model's class, or of a class that it is derived from."""
    modules = (sys.modules.get(kind.__module__) for kind in type(model).__mro__)
    return next((found for module in modules if (found := getattr(module, _LOSS, None))), None)
