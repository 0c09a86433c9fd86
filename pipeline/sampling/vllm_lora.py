"""Adapters that vLLM serves beside their base, one at a time, so that a weight sync moves the adapter alone.

vLLM takes an adapter whose number it knows for the same one, and keys its prefix cache by the adapter's name. So each
adapter has a new name and number, also if it was there before.
"""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.config import LoraConfig
from pipeline.errors import ConfigError, EngineError, UnsupportedModelError
from pipeline.model.lora import saved_rank
from pipeline.model.lora_targets import adapted_modules, is_mixture
from pipeline.model.weight_names import weightless

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's engines have room for; an adapter of a lower one is filled up with zeros."""


def why_merged(directory: Path, lora: LoraConfig, device: str) -> str | None:
    """Says why vLLM cannot serve the adapters of a policy beside their base; None if it can.

    Only the configuration is read, no weights. ``environment.configure_environment`` must have been called.

    Args:
        directory: with the base's ``config.json``.

    Raises:
        ConfigError: the base has no such modules, or no configuration.
    """
    if lora.rank > RANKS[-1]:
        return f"vLLM serves adapters of a rank up to {RANKS[-1]}, and update.lora.rank is {lora.rank}"
    model = weightless(directory)
    ends = {"embeddings": model.get_input_embeddings(), "output head": model.get_output_embeddings()}
    for name, module in adapted_modules(model, lora.target_modules).items():
        if end := next((end for end, part in ends.items() if module is part), None):
            return f"vLLM is not given adapters of the {end}, and update.lora.target_modules name '{name}'"
    if device == "cpu" and is_mixture(model):  # its experts' layers, adapted or not, ask for Triton then
        return "vLLM on a CPU serves no adapters of a mixture of experts"
    kind = _vllm_class(directory)
    from vllm.model_executor.models import supports_lora

    return None if supports_lora(kind) else f"vLLM serves no adapters of a {kind.__name__}"


def engine_arguments(directory: Path, lora: LoraConfig) -> dict[str, Any]:
    """Returns what an engine is started with that serves such adapters: with room for one, where it has modules."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": next(rank for rank in RANKS if rank >= lora.rank),
        # Without them each linear layer, the embeddings and the head would compute with an adapter of zeros.
        "lora_target_modules": _target_names(directory, lora),
    }


class ServedAdapters:
    """The adapters of an engine that was started with `engine_arguments`.

    Args:
        directory: the base that it holds.

    Raises:
        UnsupportedModelError: it has no place for one of them.
    """

    def __init__(self, engine: Any, directory: Path, lora: LoraConfig) -> None:
        self._engine, self._rank = engine, lora.rank
        self._numbers = count(1)
        self.request: Any = None
        """What a request to the engine names the adapter by; None while it serves the base."""
        _check_places(engine, _target_names(directory, lora))

    def serve(self, directory: Path | None) -> None:
        """Serves a saved adapter from now on, or the base alone; the one before is gone.

        Raises:
            ConfigError: its rank is above the one that the engine was started for; nothing changed.
            EngineError: vLLM does not take it; the one before may still be there.
        """
        from vllm.lora.request import LoRARequest

        before, self.request = self.request, None
        if directory is None:
            if before is not None:
                self._engine.remove_lora(before.lora_int_id)
            return
        if (rank := saved_rank(directory)) > self._rank:
            raise ConfigError(
                f"the adapter in {directory} has rank {rank}, and update.lora.rank is {self._rank}: keep update.lora "
                "as it was, or set sampling.lora to merged"
            )
        number = next(self._numbers)
        request = LoRARequest(f"adapter-{number}", number, str(directory))
        try:
            self._engine.add_lora(request)  # in place of the one before: the engine has room for one
            if (known := set(self._engine.list_loras())) != {number}:
                raise EngineError(f"it holds the adapters {sorted(known)}, and should hold {number} alone")
        except Exception as error:
            raise EngineError(
                f"vLLM cannot serve the adapter in {directory} ({error}): start a new sampler, or set sampling.lora to "
                "merged"
            ) from error
        self.request = request


def _target_names(directory: Path, lora: LoraConfig) -> list[str]:
    modules = adapted_modules(weightless(directory), lora.target_modules)
    return sorted({name.rpartition(".")[2] for name in modules})


def _vllm_class(directory: Path) -> type:
    """Returns the class that vLLM computes a model with."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import get_model_architecture

    try:
        config = EngineArgs(model=str(directory), skip_tokenizer_init=True).create_model_config()
        kind: type = get_model_architecture(config)[0]
    except Exception as error:
        raise UnsupportedModelError(
            f"vLLM does not know the model of '{directory}' ({error}): set sampling.engine to transformers"
        ) from error
    return kind


def _check_places(engine: Any, names: Sequence[str]) -> None:
    """Refuses an engine in which a target has no place: vLLM would leave out what the adapter changes there."""
    manager = engine.collective_rpc("get_model")[0].lora_manager
    own = {name.rpartition(".")[2] for name in manager.modules}
    places = own | {part for name in own for part in manager.packed_modules_mapping.get(name, ())}
    if lacking := sorted(set(names) - places):
        raise UnsupportedModelError(
            f"vLLM has no place for an adapter of '{lacking[0]}' in this model: set sampling.lora to merged"
        )
