"""Policies in GGUF files: their dequantised weights are saved as a checkpoint of transformers."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import ConfigError
from pipeline.model.checkpoint_files import SMALL_FILES, first_line
from pipeline.model.policy import save_policy  # which also turns off the bars of transformers

CHAT_TEMPLATE = "chat_template.jinja"
_READ_BESIDE = (
    "config.json", "tokenizer", CHAT_TEMPLATE, "special_tokens", "vocab", "merges", "added_tokens", "spiece",
    "sentencepiece", "tekken", "tiktoken",
)  # fmt: skip
"""What the names of files begin with that transformers may make a tokenizer of."""
_SPECIAL_TOKENS = {"eos_token": "eos", "bos_token": "bos", "pad_token": "padding", "unk_token": "unknown"}
"""Names of special tokens in transformers, and in the format."""


def gguf_digest(file: Path, dtype: torch.dtype) -> str:
    """Hashes what decides the checkpoint that :func:`dequantise` makes: files, precision, versions of what reads them.

    The files are the GGUF file and those beside it of which a tokenizer is made.

    Raises:
        ConfigError: the package gguf is missing.
    """
    _check_package()
    digest = hashlib.sha256()
    for package in ("transformers", "gguf"):
        digest.update(f"{package} {version(package)}\0".encode())
    for part in (file, *_beside(file)):
        with part.open("rb") as content:
            digest.update(f"{part.suffix if part == file else part.name}\0".encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    if dtype != torch.float32:  # version 0.1.0 had no other
        digest.update(f"{dtype}\0".encode())
    return digest.hexdigest()[:16]


def dequantise(file: Path, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Saves a GGUF file as a checkpoint of transformers: weights as safetensors, configuration, tokenizer.

    Tokenizer files and a chat template that lie beside it are taken. If ``tokenizer.json`` is not among them, the
    vocabulary comes from the GGUF file; if it is, only special tokens and a chat template that nothing beside it names.

    Raises:
        ConfigError: transformers cannot read the file, or the package gguf is missing.
    """
    _check_package()
    with _alone(file) as source:
        own = {} if (source / "tokenizer.json").is_file() else {"gguf_file": file.name}
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **own, trust_remote_code=False)
            if not own:
                _complete(tokenizer, file)
        except Exception as error:
            reason = first_line(error).replace(str(source), str(file.parent))
            raise ConfigError(
                f"the GGUF file '{file}' cannot be read ({reason}): give one of an architecture that transformers "
                "knows, with the tokenizer's files beside it if its own do not serve, or a checkpoint with safetensors"
            ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ConfigError(f"the GGUF file '{file}' lacks {missing[:3]}, which would be random: give a complete one")
    if (template := file.parent / CHAT_TEMPLATE).is_file():
        tokenizer.chat_template = template.read_text("utf-8")
    # It is not quantised any more, and what says otherwise cannot be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    save_policy(model, tokenizer, directory, dtype=dtype)


def _check_package() -> None:
    if find_spec("gguf") is None:
        raise ConfigError("reading a GGUF file needs the package gguf: pip install 'gguf>=0.19'")


def _beside(file: Path) -> list[Path]:
    """Lists the files in the directory of a GGUF file of which a tokenizer is made, its chat template among them."""
    found = {part for pattern in SMALL_FILES for part in file.parent.glob(pattern)}
    return sorted(part for part in found if part.name.startswith(_READ_BESIDE))


@contextmanager
def _alone(file: Path) -> Iterator[Path]:
    """Gives a directory with links to the files that :func:`gguf_digest` hashes, and none else.

    Where the file lies transformers might follow others, such as an adapter's configuration to another model.
    """
    with TemporaryDirectory(prefix="rondo-gguf-") as directory:
        for part in (file, *_beside(file)):
            (Path(directory) / part.name).symlink_to(part.resolve())
        yield Path(directory)


def _complete(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Gives a tokenizer that was made of the files beside a GGUF file what they do not name and the file does."""
    from gguf import GGUFReader

    stated = GGUFReader(file).fields
    if tokenizer.chat_template is None and (field := stated.get("tokenizer.chat_template")):
        tokenizer.chat_template = field.contents()
    for name, known in _SPECIAL_TOKENS.items():
        field = stated.get(f"tokenizer.ggml.{known}_token_id")
        if getattr(tokenizer, name) is None and field:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(field.contents())))
