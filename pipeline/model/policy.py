"""The policy on disk and in memory: load it, save it, and put other weights into it.

Weights are safetensors; nothing here reads or writes a pickle.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from pipeline.errors import ConfigError
from pipeline.model.checkpoint_files import check_source, first_line, name_dtype, weight_files
from pipeline.model.distributed import full_tensor, local, spread_like, world_of
from pipeline.model.generation import valid_generation_config
from pipeline.model.model_config import caps_attention, context_limits
from pipeline.model.weight_names import Files, WeightNames, weightless_like

Precision = Literal["float32", "bfloat16"]

# Its bars, one for every load and save, would cut through the run's own display.
transformers_logging.disable_progress_bar()


def load_policy(
    directory_or_hub_id: str | Path,
    *,
    device: str,
    precision: Precision = "float32",
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads model and tokenizer of a local directory or of the hub, in evaluation mode.

    Master weights are float32 unless ``precision`` says otherwise. Only safetensors are read, and no code of
    the checkpoint is run.

    Raises:
        ConfigError: there is no such directory, the hub cannot be reached, or it is no causal language model.
    """
    source = str(directory_or_hub_id)
    check_source(source, revision)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        model, loading = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, precision),
            # The fused kernels leave out a cap on attention scores.
            attn_implementation="eager" if caps_attention(config) else None,
            generation_config=valid_generation_config(source, revision=revision),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise ConfigError(_cannot_load(source, error)) from error
    if loading["missing_keys"]:
        raise ConfigError(
            f"the checkpoint '{source}' lacks {sorted(loading['missing_keys'])[:3]}, which would be random: give a "
            "complete checkpoint of a causal language model"
        )
    tokenizer = load_tokenizer(source, revision=revision)
    _check_fit(source, model, tokenizer)
    return model.to(device).eval(), tokenizer


def load_tokenizer(directory_or_hub_id: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a local directory or of the hub.

    Raises:
        ConfigError: it cannot be loaded, or it has no end-of-sequence token, so that no answer could end.
    """
    source = str(directory_or_hub_id)
    check_source(source, revision)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except Exception as error:
        raise ConfigError(_cannot_load(source, error)) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of '{source}' has no end-of-sequence token: set its eos_token")
    return tokenizer


def save_config(directory_or_hub_id: str | Path, revision: str | None, directory: Path) -> Path:
    """Writes the configuration of a local directory's or the hub's model, which it returns the directory of.

    Raises:
        ConfigError: it cannot be loaded.
    """
    _load_config(directory_or_hub_id, revision).save_pretrained(directory)
    return directory


def save_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Writes safetensors, configurations and tokenizer files, as ``from_pretrained`` and vLLM open them.

    Of several ranks all call it; the first one holds all weights meanwhile, in its main memory, and writes.

    Args:
        dtype: the precision that weights are rounded to in the files; that of the model if None.
    """
    dtype = None if dtype == model.dtype else dtype
    weights = None if world_of(model).size == 1 and dtype is None else _gathered(model, dtype)
    if world_of(model).is_main:
        model.save_pretrained(directory, state_dict=weights)
        if dtype is not None:
            name_dtype(directory, dtype)
        tokenizer.save_pretrained(directory)


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Rounds the weights of a model, in place, to what `save_policy` writes in this precision."""
    with torch.no_grad():
        for weight in map(local, model.state_dict(keep_vars=True).values()):
            if weight.is_floating_point() and weight.dtype != dtype:
                weight.copy_(weight.to(dtype))


def _gathered(model: PreTrainedModel, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Gathers the model's weights in main memory, on the first rank; tied ones are one tensor, as in the model."""
    found: dict[int, torch.Tensor] = {}
    named: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in found:
            full = full_tensor(weight.detach())
            kind = dtype if full.is_floating_point() else None
            found[id(weight)] = full.to("cpu", kind or full.dtype) if world_of(model).is_main else full[:0]
        named[name] = found[id(weight)]
    return named


def max_context(directory_or_hub_id: str | Path, *, revision: str | None = None) -> int:
    """Returns the longest sequence, in tokens, that the model can read.

    Raises:
        ConfigError: the model cannot be found, or its configuration does not say.
    """
    return choose_context(directory_or_hub_id, None, revision=revision)


def choose_context(directory_or_hub_id: str | Path, wanted: int | None, *, revision: str | None = None) -> int:
    """Chooses the tokens of the longest sequence: as many as are wanted, or, if that is None, as the model can read.

    Raises:
        ConfigError: the model cannot be found, reads fewer than are wanted, or does not say how many it reads.
    """
    config, source = _load_config(directory_or_hub_id, revision), str(directory_or_hub_id)
    limits = context_limits(config)
    if not limits:
        if wanted is None:
            raise ConfigError(
                f"the configuration of '{source}' does not say how many tokens the model reads: set sampling.context"
            )
        return wanted
    name, limit = min(limits.items(), key=lambda item: item[1])
    if wanted is not None and wanted > limit:
        raise ConfigError(
            f"sampling.context {wanted} is more than the model's own {limit} ({name}): lower it, or leave it empty"
        )
    return limit if wanted is None else wanted


def load_weights(model: PreTrainedModel, directory: Path) -> None:
    """Puts a checkpoint's weights into a model of the same shape, in place. If they do not fit, nothing changes.

    If the model has an adapter, this loads the base. A weight is what ``from_pretrained`` makes of the files.

    Raises:
        ConfigError: the checkpoint is unreadable, lacks a weight, or holds one of another shape.
    """
    files = Files(weight_files(directory))
    names = WeightNames(weightless_like(model), files.shapes)
    shapes = names.shapes()
    tensors = tensors_by_saved_name(model)
    for name, parameter in model.named_parameters():
        aliases = [alias for alias, tensor in tensors.items() if tensor is parameter]
        if ".lora_" in name or any(shapes.get(alias) == tuple(parameter.shape) for alias in aliases):
            continue
        raise ConfigError(
            f"the weights in {directory} do not fit the model: '{aliases[0]}' is "
            f"{shapes.get(aliases[0], 'missing')}, not {tuple(parameter.shape)}"
        )
    for group in names.groups:
        put_tensors(tensors, names.in_memory(group, files.read(group.names)))


def put_tensors(own: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> None:
    """Puts new weights in place of a model's ``own``, as `tensors_by_saved_name` gives them, as far as it has them."""
    with torch.no_grad():
        for name, tensor in new.items():
            if name in own:
                own[name].copy_(spread_like(tensor, own[name]))


def tensors_by_saved_name(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Finds all that a checkpoint has of a model, by the names without an adapter; what is tied is there twice."""
    tensors = model.state_dict(keep_vars=True)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}


def _check_fit(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer whose ids the model does not know, or whose end of sequence does not end its answers."""
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"the tokenizer of '{source}' has {len(tokenizer)} tokens and its model {vocabulary}: give the tokenizer "
            "that the model was trained with, or resize its embeddings"
        )
    stops = model.generation_config.eos_token_id if model.generation_config else model.config.eos_token_id
    if tokenizer.eos_token_id not in (stops if isinstance(stops, list) else [stops]):
        raise ConfigError(
            f"the tokenizer of '{source}' ends texts with token {tokenizer.eos_token_id}, but the model's answers end "
            f"with {stops}: put the same eos_token_id into its generation_config.json"
        )


def _load_config(directory_or_hub_id: str | Path, revision: str | None) -> PretrainedConfig:
    source = str(directory_or_hub_id)
    check_source(source, revision)
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(_cannot_load(source, error)) from error


def _cannot_load(source: str, error: Exception) -> str:
    return (
        f"the checkpoint '{source}' cannot be loaded ({first_line(error)}): "
        "give one with config.json, safetensors and tokenizer files"
    )
