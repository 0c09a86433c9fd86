"""A way to call the command line as a user does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.forkserver import Done, ForkServer
from support.recipes import TINY

Rondo = Callable[..., Done]


@pytest.fixture(scope="session")
def rondo(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Rondo:
    """Runs ``rondo`` with these arguments, or with ``kill=...`` the one of ``support.killed``; processes are forked."""
    directory = tmp_path_factory.mktemp("commands")

    def call(*arguments: str, kill: str | None = None, check: bool = True) -> Done:
        module = ["support.killed", kill] if kill else ["flows.cli.main"]
        done = forks.run(*module, *arguments, directory=directory, timeout=900)
        if check and (kill is None or kill.endswith(("worker", "asked"))):
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    return call


@pytest.fixture(scope="session")
def started_rondo(environment: dict[str, str]) -> Rondo:
    """The same in a process that Python starts, as vLLM and torchrun need it."""

    def call(*arguments: str, kill: str | None = None) -> Done:
        module = ["support.killed", kill] if kill else ["flows.cli.main"]
        command = [sys.executable, "-m", *module, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert kill or done.returncode == 0, done.stderr + done.stdout
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def whole(rondo: Rondo, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nothing interrupted; tests only read it, or add runs beside it."""
    root = tmp_path_factory.mktemp("whole")
    rondo("run", str(tiny_recipe), "--name", "whole", "--root", str(root))
    return root


@pytest.fixture(scope="session")
def read_json(rondo: Rondo) -> Callable[..., Any]:
    return lambda *arguments: json.loads(rondo(*arguments, "--json").stdout)
