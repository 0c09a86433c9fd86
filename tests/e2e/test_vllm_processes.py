"""The real vLLM in processes of its own, one an engine, which are forked from one that has imported it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forkserver import ForkServer, forked_environment, forkserver

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    environment = forked_environment(os.environ)
    with forkserver(tmp_path_factory.mktemp("v"), environment, preload=["support.vllm_imported"]) as server:
        yield server


def test_an_engine_that_schedules_ahead(engines: ForkServer, tmp_path: Path) -> None:
    """As on a GPU: see ``support.engine_ahead``."""
    done = engines.run("support.engine_ahead", str(tmp_path), directory=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "gpt2", "longrope", "mixtral", "opt", "own head"])
def test_types_of_models_that_keep_things_elsewhere(engines: ForkServer, kind: str, tmp_path: Path) -> None:
    """vLLM agrees with plain transformers, before and after new weights: see ``support.engine_of_type``."""
    done = engines.run("support.engine_of_type", kind, str(tmp_path), directory=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma2", marks=pytest.mark.nightly)])
def test_adapters_that_are_served(engines: ForkServer, kind: str, tmp_path: Path) -> None:
    """Base and adapter by peft, merged, and served as an adapter are one policy: see ``support.served_adapters``."""
    done = engines.run("support.served_adapters", kind, str(tmp_path), directory=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
