"""The command line as a whole."""

import tomllib
from pathlib import Path

from typer.testing import CliRunner

from flows.cli.main import app

REPOSITORY = Path(__file__).parents[3]


def test_it_says_its_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"rondo {project['version']}\n")
