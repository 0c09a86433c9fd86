"""The generation configuration of a checkpoint, in a form that can be loaded and saved again."""

import json
from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import cached_file

_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def valid_generation_config(source: str, *, revision: str | None = None) -> GenerationConfig | None:
    """Reads the checkpoint's own, or its special tokens alone if its sampling defaults contradict each other.

    transformers refuses to save such a file, and to load some of them. Nobody here samples by these defaults.

    Returns:
        None if the checkpoint has none.
    """
    try:
        path = cached_file(source, "generation_config.json", revision=revision)
    except OSError:
        return None
    try:
        found: GenerationConfig = GenerationConfig.from_pretrained(source, revision=revision)
        found.validate(strict=True)
    except ValueError:
        written = json.loads(Path(path).read_text(encoding="utf-8"))
        found = GenerationConfig(**{name: written[name] for name in _ENDS if name in written})
    return found
