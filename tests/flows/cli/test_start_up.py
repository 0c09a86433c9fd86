"""What the commands do not import: each is a process of its own, as for a user. Times are in docs/performance.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from storage.log.store import Store
from support.finished_run import finished_run
from support.recipes import TINY

REPOSITORY = Path(__file__).parents[3]
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "altair", "prefect", "datasets", "vllm", "ray", "peft")
SAY = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)"
COMMAND = f"""
import atexit, sys
def say():
    {SAY}
atexit.register(say)
sys.argv = ["rondo", *sys.argv[1:]]
from flows.cli.main import main
main()
"""
FIRST_LINE = f"""
import os, sys
from flows.host.progress import Display
def say(self, text):
    {SAY}
    print(text)
    sys.stdout.flush()
    os._exit(0)
Display.say = say
sys.argv = ["rondo", *sys.argv[1:]]
from flows.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    finished_run(Store.open(path))
    return path


def python(code: str, *arguments: str) -> tuple[str, list[str]]:
    """What the code prints, and which heavy packages it says that it has imported."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd="/", capture_output=True, text=True, check=True
    )
    imported: list[str] = json.loads(done.stderr.strip().splitlines()[-1])
    return done.stdout, imported


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",), ("--version",), ("show", "--help"), ("recipes",), ("runs",), ("rounds", "small"),
        ("path", "small", "completions"), ("show", "small@2"), ("show", "small@2", "--table", "preferences"),
        ("sql", "small", "select round, avg(score) from judgments group by 1"), ("history", "small", "t0"),
        ("scores", "small"), ("diff", "small@1", "small@2"), ("lineage",), ("timeline", "small"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_that_reads_imports_nothing_heavy(root: Path, arguments: tuple[str, ...]) -> None:
    where = () if arguments[0].startswith("--") or arguments[0] == "recipes" or "--help" in arguments else ("--root",)
    output, imported = python(COMMAND, *arguments, *(where and (*where, str(root))))
    assert output
    assert imported == []


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_and_version_open_no_store(arguments: tuple[str, ...]) -> None:
    spared = (
        "obstore", "duckdb", "pyarrow", "numpy", "pydantic", "storage.log", "pipeline.config", "markdown_it",
        "pygments", "attr", "rich.markdown", "rich.traceback", "statistics",
    )  # fmt: skip
    assert python(COMMAND.replace(repr(HEAVY), repr(spared)), *arguments)[1] == []


def test_help_pages_are_those_of_typer_alone() -> None:
    """With and without the parts that are spared."""
    spared = COMMAND.replace(SAY, "print('[]', file=sys.stderr)")
    whole = spared.replace("from flows.cli.main", "import rich.markdown, rich.traceback\nfrom flows.cli.main")
    assert python(spared, "show", "--help")[0] == python(whole, "show", "--help")[0]


def test_no_plugins_of_pydantic_are_looked_for(root: Path) -> None:
    """pydantic lists them once, when the first model is made: until then there is no list."""
    say = "from pydantic.plugin import _loader; print('[]' if _loader._plugins is None else '[0]', file=sys.stderr)"
    assert python(COMMAND.replace(SAY, say), "rounds", "small", "--root", str(root))[1] == []


def test_the_catalog_needs_no_arrow(root: Path) -> None:
    for arguments in (("runs",), ("rounds", "small"), ("path", "small", "prompts")):
        code = COMMAND.replace(repr(HEAVY), "('duckdb', 'pyarrow', 'numpy', 'pipeline.config')")
        assert python(code, *arguments, "--root", str(root))[1] == []


def test_the_first_line_of_a_run_comes_before_what_takes_seconds(tmp_path: Path, root: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    new = tmp_path / "new"
    moving = FIRST_LINE.replace("Display.say =", "Display.doing =")
    line, imported = python(moving, "run", str(recipe), "--root", str(new))
    assert (line, imported) == (f"reading {recipe}\n", []), "on a terminal"
    line, imported = python(FIRST_LINE, "run", str(recipe), "--root", str(new))
    assert line == f"run 'tiny' in {new}: 2 rounds\n"
    assert set(imported) <= {"pandas"}, "pyarrow's"
    line, imported = python(FIRST_LINE, "resume", "small", "--rounds", "9", "--root", str(root))
    assert line == f"run 'small' in {root}: 9 rounds, going on after round 3\n"
    assert set(imported) <= {"pandas"}, "pyarrow's"


def test_a_recipe_is_cheap_to_import() -> None:
    code = f"import pipeline.config\n{SAY}".replace(repr(HEAVY), repr((*HEAVY, "numpy", "pyarrow", "yaml")))
    assert python(code)[1] == []
