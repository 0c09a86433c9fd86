"""The directory that the sampler loads: the checkpoint itself, or a copy whose output head is a tensor of its own."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import AutoConfig

from pipeline.errors import ConfigError, UnsupportedModelError
from pipeline.model.checkpoint_files import INDEX, SMALL_FILES, read_config, weight_files, weight_shapes
from pipeline.model.weight_names import open_tensors, weightless

_EMBEDDINGS = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_HEAD_FILE = "head.safetensors"
SAMPLED_TIED = frozenset({"gemma2", "gemma3n", "gemma3n_text", "cohere", "cohere2", "cohere2_moe"})
"""Types of which vLLM has no place for an output head of its own: their embeddings are always their head."""


def sampler_copy(checkpoint: Path, scratch: Path) -> Path:
    """Returns the directory that the sampler loads: the checkpoint itself, or an untied copy of it in ``scratch``.

    If input and output embeddings are one tensor, vLLM's CPU build packs the output head for its matrix kernels when
    it starts. A reload in place then renews the embeddings, but not that packed head, and the sampler mixes two
    policies: log-probabilities were off by 0.5 nats per token after one reload, without any error. With a head of its
    own (``lm_head.weight``, ``tie_word_embeddings`` false) a reload is exact, and the model computes the same function.

    Files of weights are linked to, and the head alone is written: the copy costs no second model on disk. A type in
    `SAMPLED_TIED` stays as it is: there the embeddings' own module projects on the vocabulary, and a reload packs it
    anew.

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
            if path.name not in (INDEX, "config.json"):
                shutil.copyfile(path, scratch / path.name)
    (scratch / "config.json").write_text(
        json.dumps({**config, "tie_word_embeddings": False}, indent=2), encoding="utf-8"
    )
    _link_untied(checkpoint, scratch)
    return scratch


def is_tied(config: dict[str, Any]) -> bool:
    """Says whether input and output embeddings are one tensor; the type's class decides if ``config`` does not."""
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    kind = config.get("model_type")
    try:
        default: bool = AutoConfig.for_model(kind).tie_word_embeddings
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"the model_type {kind!r} of the checkpoint is none that transformers knows") from error
    return default


def _link_untied(checkpoint: Path, scratch: Path) -> None:
    """Links to the checkpoint's weights, and writes the head alone beside them, with an index of both."""
    weight_map: dict[str, str] = {}
    shapes = weight_shapes(checkpoint)
    embeddings, head = tied_names(shapes, lambda: weightless(checkpoint))
    for path in weight_files(checkpoint):
        link = f"linked-{path.name}"  # transformers would take a model.safetensors for the whole, without the head
        (scratch / link).symlink_to(path.resolve())
        with open_tensors(path) as source:
            names = list(source.keys())
            weight_map |= dict.fromkeys(names, link)
            # A file that has a head of its own beside the flag keeps it, as transformers does.
            if embeddings in names and head not in shapes:
                save_file({head: source.get_tensor(embeddings)}, scratch / _HEAD_FILE, metadata={"format": "pt"})
                weight_map[head] = _HEAD_FILE
    index = {"metadata": {}, "weight_map": weight_map}
    (scratch / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def tied_names(shapes: Mapping[str, Any], make_model: Callable[[], Any]) -> tuple[str, str]:
    """Names the input embeddings, and the head that they serve as; without the usual name, the model tells them.

    Args:
        shapes: of the tensors in the checkpoint, by name.
        make_model: makes the model without weights.

    Raises:
        UnsupportedModelError: the embeddings are not where they are expected.
    """
    if _EMBEDDINGS in shapes:
        return _EMBEDDINGS, _HEAD
    model = make_model()
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    embeddings, head = (names.get(module) for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    if embeddings is None or head is None or embeddings not in shapes:
        raise UnsupportedModelError(
            f"the checkpoint of a {type(model).__name__} has tied embeddings, but no tensor "
            f"'{embeddings or _EMBEDDINGS}': save it with tie_word_embeddings false"
        )
    return embeddings, head
