"""The command line as a whole."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli import main as command_line
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
    assert "--run" in CliRunner().invoke(app, ["fork", "--help"]).stdout


def test_json_is_still_an_option_that_the_help_does_not_show() -> None:
    done = CliRunner().invoke(app, ["recipes", "--json"])
    assert done.exit_code == 0
    assert done.stdout == CliRunner().invoke(app, ["recipes", "--format", "json"]).stdout
    assert "--json" not in CliRunner().invoke(app, ["recipes", "--help"]).stdout
    assert CliRunner().invoke(app, ["down", "--json"]).exit_code == 2, "of a command that prints no rows it is none"


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A command leaves Ctrl-C to the system at its end; the tests' own process goes on, and wants to hear of it."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
@pytest.mark.parametrize("buffering", [-1, 1], ids=["at the end", "at once"])
def test_a_full_output_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], buffering: int
) -> None:
    with open("/dev/full", "w", buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "argv", ["rondo", "recipes", "--json"])
        with pytest.raises(SystemExit) as end:
            command_line.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: standard output cannot be written: No space left on device\n"


def test_a_reader_that_has_enough_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        monkeypatch.setattr(sys, "argv", ["rondo", "recipes"])
        with pytest.raises(SystemExit):
            command_line.main()
    assert capsys.readouterr().err == ""


def test_names_that_are_not_utf_8_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file's name may be any bytes; a record and an address hold text."""
    root = os.fsdecode(os.fsencode(tmp_path) + b"/r\xff")
    os.mkdir(root)
    for arguments, said in (
        (["runs", "--root", root], "r\\xff' is not UTF-8: give another name"),
        (["runs"], "r\\xff is not UTF-8: rename it"),
    ):
        monkeypatch.setenv("RONDO_ROOT", root)
        monkeypatch.setattr(sys, "argv", ["rondo", *arguments])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        assert end.value.code == 1
        assert said in capsys.readouterr().err


def test_what_standard_output_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["rondo", "recipes", "--json"])
    monkeypatch.setattr(
        "flows.registry.shipped_files.described_recipes", lambda: [{"recipe": "\ud800", "description": ""}]
    )
    with open(tmp_path / "out", "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            command_line.main()
    assert (end.value.code, json.loads((tmp_path / "out").read_text())[0]["recipe"]) == (0, "\ud800")
