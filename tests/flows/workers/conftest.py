"""A store with a run, and its workers in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.workers.base import Worker
from pipeline.recipe import Recipe
from storage.log.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "root")
    store.create_run("r", {})
    return store


@pytest.fixture
def make_worker(store: Store, tmp_path: Path) -> Callable[[type[Worker], Recipe], Any]:
    """Makes a worker of the run that computes in this process."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return lambda kind, recipe: kind(
        root=store.root, run="r", recipe=recipe.model_dump(mode="json"), scratch=str(scratch)
    )
