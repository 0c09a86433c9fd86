"""The command line as a whole."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli.main import app

REPOSITORY = Path(__file__).parents[3]


def test_it_says_its_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"rondo {project['version']}\n")


def test_the_pages_that_are_written_from_the_code_are_current() -> None:
    # In a process of its own: other tests register judges of theirs.
    script = (
        "from flows.cli.reference import pages\n"
        "print(*(path.name for path, text in pages().items() if path.read_text(encoding='utf-8') != text))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert not done.stdout.strip(), "run: make reference"


def test_every_command_says_what_it_does_with_the_fields_words() -> None:
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        texts = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
        assert all(texts), f"{name}: each argument and option says what it is"
        assert not re.search(r"\b(answers?|candidates?)\b", " ".join(filter(None, texts)).lower()), name


def test_the_help_shows_no_type_of_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for arguments in ([], ["run"], ["fork"], ["train-judge"]):
        assert "bool" not in CliRunner().invoke(app, [*arguments, "--help"]).stdout
    assert "--no-start" in CliRunner().invoke(app, ["fork", "--help"]).stdout


def test_json_is_still_an_option_that_the_help_does_not_show() -> None:
    done = CliRunner().invoke(app, ["recipes", "--json"])
    assert done.exit_code == 0
    assert done.stdout == CliRunner().invoke(app, ["recipes", "--format", "json"]).stdout
    assert "--json" not in CliRunner().invoke(app, ["recipes", "--help"]).stdout
    assert CliRunner().invoke(app, ["down", "--json"]).exit_code == 2, "of a command that prints no rows it is none"
