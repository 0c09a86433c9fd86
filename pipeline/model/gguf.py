"""Policies in GGUF files: their dequantised weights are saved as a checkpoint of transformers."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import ConfigError
from pipeline.model.checkpoint_files import SMALL_FILES, first_line
from pipeline.model.policy import save_policy  # which also turns off the bars of transformers

CHAT_TEMPLATE = "chat_template.jinja"
_TOKENIZER = ("tokenizer", CHAT_TEMPLATE, "special_tokens", "vocab", "merges", "added_tokens", "spiece")


def gguf_digest(file: Path) -> str:
    """Hashes a GGUF file and the tokenizer's files beside it: all that :func:`dequantise` reads."""
    digest = hashlib.sha256()
    for part in (file, *_beside(file)):
        with part.open("rb") as content:
            digest.update(f"{part.suffix if part == file else part.name}\0".encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def dequantise(file: Path, directory: Path) -> None:
    """Saves a GGUF file as a checkpoint of transformers: float32 weights as safetensors, configuration, tokenizer.

    Tokenizer files and a chat template that lie beside it are taken; what is not there comes from the file.

    Raises:
        ConfigError: transformers cannot read the file, or the package gguf is missing.
    """
    if find_spec("gguf") is None:
        raise ConfigError("reading a GGUF file needs the package gguf: pip install 'gguf>=0.19'")
    source, named = str(file.parent), {"gguf_file": file.name}
    own = {} if (file.parent / "tokenizer.json").is_file() else named
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, **named, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **own, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(
            f"the GGUF file '{file}' cannot be read ({first_line(error)}): give one of an architecture that "
            "transformers knows, with the tokenizer's files beside it if its own do not serve, or a checkpoint with "
            "safetensors"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ConfigError(f"the GGUF file '{file}' lacks {missing[:3]}, which would be random: give a complete one")
    if (template := file.parent / CHAT_TEMPLATE).is_file():
        tokenizer.chat_template = template.read_text("utf-8")
    # It is not quantised any more, and what says otherwise cannot be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    save_policy(model, tokenizer, directory)


def _beside(file: Path) -> list[Path]:
    """Lists the tokenizer's files in the directory of a GGUF file, and a chat template."""
    found = {part for pattern in SMALL_FILES for part in file.parent.glob(pattern)}
    return sorted(part for part in found if part.name.startswith(_TOKENIZER))
