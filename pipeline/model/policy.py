"""The policy on disk and in memory: load it, save it, and prepare the directory that the sampler reads.

Weights are safetensors; nothing here reads or writes a pickle.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from pipeline.errors import ConfigError, UnsupportedModelError
from pipeline.model.distributed import full_tensor, spread_like, world_of
from pipeline.model.generation import valid_generation_config
from pipeline.model.model_config import caps_attention, context_limits
from pipeline.model.weight_names import Files, WeightNames, open_tensors, weightless, weightless_like

HUB_TIMEOUT = 15.0
"""Seconds that the hub has to say whether it has a model."""

Precision = Literal["float32", "bfloat16"]
Shapes = dict[str, tuple[int, ...]]

# Its bars, one for every load and save, would cut through the run's own display.
transformers_logging.disable_progress_bar()

_EMBEDDINGS = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
SAMPLED_TIED = frozenset({"gemma2", "gemma3n", "gemma3n_text", "cohere", "cohere2", "cohere2_moe"})
"""Types of which vLLM has no place for an output head of its own: their embeddings are always their head."""

# Files beside the weights that an engine may need.
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def load_policy(
    directory_or_hub_id: str | Path,
    *,
    device: str,
    precision: Precision = "float32",
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a local directory or of the hub, in evaluation mode.

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
    """The tokenizer of a local directory or of the hub.

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


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write safetensors, configurations and tokenizer files, as ``from_pretrained`` and vLLM open them.

    Of several ranks all call it; the first one holds all weights meanwhile, in its main memory, and writes.
    """
    weights = None if world_of(model).size == 1 else _gathered(model)
    if world_of(model).is_main:
        model.save_pretrained(directory, state_dict=weights)
        tokenizer.save_pretrained(directory)


def _gathered(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's weights whole, in main memory, on the first rank; tied ones are one tensor, as in the model."""
    found: dict[int, torch.Tensor] = {}
    named: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in found:
            full = full_tensor(weight.detach())
            found[id(weight)] = full.cpu() if world_of(model).is_main else full[:0]
        named[name] = found[id(weight)]
    return named


def max_context(directory_or_hub_id: str | Path, *, revision: str | None = None) -> int:
    """The longest sequence, in tokens, that the model can read.

    Raises:
        ConfigError: the model cannot be found, or its configuration does not say.
    """
    return choose_context(directory_or_hub_id, None, revision=revision)


def choose_context(directory_or_hub_id: str | Path, wanted: int | None, *, revision: str | None = None) -> int:
    """The tokens of the longest sequence: as many as are wanted, or as the model can read if no number is.

    Raises:
        ConfigError: the model cannot be found, reads fewer than are wanted, or does not say how many it reads.
    """
    source = str(directory_or_hub_id)
    check_source(source, revision)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(_cannot_load(source, error)) from error
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
    """Put a checkpoint's weights into a model of the same shape, in place. Where they do not fit, nothing changes.

    Of a model with an adapter this loads the base. A weight is what ``from_pretrained`` makes of the files.

    Raises:
        ConfigError: the checkpoint is unreadable, lacks a weight, or holds one of another shape.
    """
    files = Files(weight_files(directory))
    names = WeightNames(weightless_like(model), files.shapes)
    shapes = names.shapes()
    tensors = _by_saved_name(model)
    for name, parameter in model.named_parameters():
        aliases = [alias for alias, tensor in tensors.items() if tensor is parameter]
        if ".lora_" in name or any(shapes.get(alias) == tuple(parameter.shape) for alias in aliases):
            continue
        raise ConfigError(
            f"the weights in {directory} do not fit the model: '{aliases[0]}' is "
            f"{shapes.get(aliases[0], 'missing')}, not {tuple(parameter.shape)}"
        )
    with torch.no_grad():
        for group in names.groups:
            for name, tensor in names.in_memory(group, files.read(group.names)).items():
                if name in tensors:
                    tensors[name].copy_(spread_like(tensor, tensors[name]))


def _by_saved_name(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All that a checkpoint has of a model, by the names without an adapter; what is tied is there twice."""
    tensors = model.state_dict(keep_vars=True)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}


def sampler_copy(checkpoint: Path, scratch: Path) -> Path:
    """The directory that the sampler loads: the checkpoint itself, or an untied copy of it in ``scratch``.

    Where input and output embeddings are one tensor, vLLM's CPU build packs the output head for its matrix
    kernels when it starts, and a reload in place renews the embeddings but not that packed head. The sampler
    then mixes two policies: log-probabilities were off by 0.5 nats per token after one reload, without any
    error. With a head of its own (``lm_head.weight``, ``tie_word_embeddings`` false) a reload is exact, and
    the model computes the same function.

    Files of weights pass through one at a time; the model is never built. A type in `SAMPLED_TIED` stays as it is:
    there the embeddings' own module projects on the vocabulary, and a reload packs it anew.

    Args:
        checkpoint: directory in the hub's format.
        scratch: directory that the copy may fill; what an earlier copy left in it is replaced.

    Raises:
        ConfigError: the checkpoint has no configuration or no safetensors.
        UnsupportedModelError: its embeddings are tied and not where they are expected.
    """
    config = read_config(checkpoint)
    if not is_tied(config) or str(config.get("model_type")) in SAMPLED_TIED:
        return checkpoint
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    for pattern in SMALL_FILES:
        for path in checkpoint.glob(pattern):
            if path.name not in (_INDEX, "config.json"):
                shutil.copyfile(path, scratch / path.name)
    (scratch / "config.json").write_text(
        json.dumps({**config, "tie_word_embeddings": False}, indent=2), encoding="utf-8"
    )
    _copy_untied(checkpoint, scratch)
    return scratch


def is_tied(config: dict[str, Any]) -> bool:
    """Whether input and output embeddings are one tensor; its class decides where it does not say."""
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    kind = config.get("model_type")
    try:
        default: bool = AutoConfig.for_model(kind).tie_word_embeddings
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"the model_type {kind!r} of the checkpoint is none that transformers knows") from error
    return default


def weight_shapes(directory: Path) -> Shapes:
    """Names and shapes of the tensors of a checkpoint, read from the headers alone.

    Raises:
        ConfigError: it has no readable safetensors.
    """
    shapes: Shapes = {}
    for path in weight_files(directory):
        with open_tensors(path) as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def read_config(directory: Path) -> dict[str, Any]:
    """The model configuration of a checkpoint directory.

    Raises:
        ConfigError: there is none.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ConfigError(f"{directory} holds no config.json: give the directory of a checkpoint")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON ({_first_line(error)}): fetch or save the checkpoint again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}, and no JSON object: fetch or save it again")
    return found


def _check_index(directory: Path) -> None:
    """Refuse an index of weights that names files elsewhere: the loader would follow it."""
    path = directory / _INDEX
    if not path.is_file():
        return
    names = _read_json(path).get("weight_map")
    for name in names.values() if isinstance(names, dict) else [names]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{path} names {name!r}, which is no safetensors file beside it: fetch the checkpoint again"
            )


def _copy_untied(checkpoint: Path, scratch: Path) -> None:
    weight_map: dict[str, str] = {}
    shapes = weight_shapes(checkpoint)
    embeddings, head = _tied_names(checkpoint, shapes)
    for path in weight_files(checkpoint):
        with open_tensors(path) as source:
            tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        # A file that has a head of its own beside the flag keeps it, as transformers does.
        if embeddings in tensors and head not in shapes:
            # safetensors refuses tensors that share memory.
            tensors[head] = tensors[embeddings].clone()
        save_file(tensors, scratch / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
    if (checkpoint / _INDEX).is_file():
        index = {"metadata": {}, "weight_map": weight_map}
        (scratch / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _tied_names(checkpoint: Path, shapes: Shapes) -> tuple[str, str]:
    """Names of the input embeddings and of the head that they serve as; those of a type of its own from its model."""
    if _EMBEDDINGS in shapes:
        return _EMBEDDINGS, _HEAD
    model = weightless(checkpoint)
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    embeddings, head = (names.get(module) for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    if embeddings not in shapes or head is None:
        raise UnsupportedModelError(
            f"the checkpoint {checkpoint} has tied embeddings, but no tensor '{embeddings or _EMBEDDINGS}': "
            "save it with tie_word_embeddings false"
        )
    return embeddings, head


def weight_files(directory: Path) -> Iterator[Path]:
    """The safetensors of a checkpoint.

    Raises:
        ConfigError: there are none.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ConfigError(f"{directory} holds no *.safetensors: give a checkpoint saved in that format")
    yield from paths


def check_source(source: str, revision: str | None) -> None:
    """Refuse at once what is no directory and not on the hub: the loaders would try again for most of a minute."""
    if Path(source).is_dir():
        _check_index(Path(source))
        return
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists():
        raise ConfigError(
            f"there is no directory '{source}': give that of a checkpoint, or the id of a model on the hub"
        )
    if try_to_load_from_cache(source, "config.json", revision=revision):
        return
    try:
        HfApi().model_info(source, revision=revision, timeout=HUB_TIMEOUT)
    except Exception as error:
        raise ConfigError(
            f"'{source}' is neither a local directory nor a model that the hub gives ({_first_line(error)}): check the "
            "name, the revision, the network and the access token, or download it and give the directory"
        ) from error


def _check_fit(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose ids the model does not know, or whose end of sequence does not end its answers."""
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


def _cannot_load(source: str, error: Exception) -> str:
    return (
        f"the checkpoint '{source}' cannot be loaded ({_first_line(error)}): "
        "give one with config.json, safetensors and tokenizer files"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
