"""A small run, its processes forked from one that has everything imported, and the store that it leaves undisturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support import chaos
from support.forkserver import forked_environment, forkserver
from support.small_run import SMALL, Rondo, Whole


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="session")
def forked(environment: dict[str, str]) -> dict[str, str]:
    return forked_environment(environment)


@pytest.fixture(scope="session")
def rondo(forked: dict[str, str], recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rondo]:
    directory = tmp_path_factory.mktemp("z")
    with forkserver(directory, forked) as server:
        yield Rondo(server, recipe, directory)


@pytest.fixture(scope="session")
def whole(rondo: Rondo, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    names = root / "operations"
    rondo.bring_on(root / "root", environment=chaos.settings(names, "none"))
    return Whole(root / "root", names.read_text().splitlines())
