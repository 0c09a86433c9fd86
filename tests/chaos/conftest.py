"""A small run, its processes forked from one that has everything imported, and the store that it leaves undisturbed."""

from pathlib import Path

import pytest
import yaml

from support import chaos
from support.forkserver import ForkServer
from support.small_run import SMALL, Rondo, Whole


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="session")
def rondo(forks: ForkServer, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Rondo:
    return Rondo(forks, recipe, tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="session")
def whole(rondo: Rondo, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    names = root / "operations"
    rondo.bring_on(root / "root", environment=chaos.settings(names, "none"))
    return Whole(root / "root", names.read_text().splitlines())
