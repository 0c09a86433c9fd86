"""The files of a checkpoint: where it comes from, its configuration, its safetensors and their index."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache

from pipeline.errors import ConfigError
from pipeline.model.weight_names import open_tensors

HUB_TIMEOUT = 15.0
"""Seconds that the hub has to say whether it has a model."""

Shapes = dict[str, tuple[int, ...]]
_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
INDEX = "model.safetensors.index.json"

# Files beside the weights that an engine may need.
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def weight_shapes(directory: Path) -> Shapes:
    """Reads names and shapes of the tensors of a checkpoint, from the headers alone.

    Raises:
        ConfigError: it has no readable safetensors.
    """
    shapes: Shapes = {}
    for path in weight_files(directory):
        with open_tensors(path) as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def stored_dtype(directory: Path) -> torch.dtype:
    """Returns the precision of a checkpoint's weights, from the headers alone: that of all of them, else float32.

    Raises:
        ConfigError: it has no readable safetensors.
    """
    found: set[str] = set()
    for path in weight_files(directory):
        with open_tensors(path) as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    found = {kind for kind in found if not kind.startswith(("I", "U", "BOOL"))}
    return _HALVES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def source_dtype(source: str, revision: str | None) -> torch.dtype:
    """Returns the precision of a local checkpoint, or of one on the hub that was loaded before; float32 if unknown."""
    if Path(source).is_dir():
        return stored_dtype(Path(source))
    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    return stored_dtype(Path(cached).parent) if isinstance(cached, str) else torch.float32


def name_dtype(directory: Path, dtype: torch.dtype) -> None:
    """Writes into a checkpoint's configuration which precision its weights have, as ``from_pretrained`` reads it."""
    path = directory / "config.json"
    config = {**read_config(directory), "dtype": str(dtype).removeprefix("torch.")}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(directory: Path) -> dict[str, Any]:
    """Reads the model configuration of a checkpoint directory.

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
        raise ConfigError(f"{path} is no JSON ({first_line(error)}): fetch or save the checkpoint again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}, and no JSON object: fetch or save it again")
    return found


def check_index(directory: Path) -> None:
    """Refuses an index of weights that names files elsewhere: the loader would follow it."""
    path = directory / INDEX
    if not path.is_file():
        return
    names = _read_json(path).get("weight_map")
    for name in names.values() if isinstance(names, dict) else [names]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{path} names {name!r}, which is no safetensors file beside it: fetch the checkpoint again"
            )


def weight_files(directory: Path) -> Iterator[Path]:
    """Yields the safetensors of a checkpoint, in the order of their names.

    Raises:
        ConfigError: there are none.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ConfigError(f"{directory} holds no *.safetensors: give a checkpoint saved in that format")
    yield from paths


def check_source(source: str, revision: str | None) -> None:
    """Refuses at once what is neither a directory nor on the hub: the loaders would try for most of a minute."""
    if Path(source).is_dir():
        check_index(Path(source))
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
            f"'{source}' is neither a local directory nor a model that the hub gives ({first_line(error)}): check the "
            "name, the revision, the network and the access token, or download it and give the directory"
        ) from error


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
