"""What an installation of the wheel does, from a directory that has nothing of the repository.

The environment has the wheel, and sees the libraries of the one that runs the tests; no other rondo is on its path.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.recipes import TINY

REPOSITORY = Path(__file__).parents[2]
BUILT_FROM = (
    "flows", "pipeline", "storage", "deploy/recipes", "deploy/experiments", "pyproject.toml", "setup.py", "README.md",
)  # fmt: skip
JUDGES = """
import rondo

@rondo.judge
def brief(*, answer, **_):
    return -float(len(answer))
"""
SCRIPT = """
import json, sys
import rondo
from my_judges import brief

recipe = {**json.loads(sys.argv[1]), "name": "brief", "rounds": 1, "judge": brief.config(name="brief").model_dump()}
run = rondo.run(rondo.Recipe(**recipe), root="kept")
frame = run[1].judgments.to_pandas()
print(json.dumps({
    "rounds": [summary.round for summary in run.rounds], "judges": sorted(set(frame["judge"])), "rows": len(frame),
    "scored": bool((frame["score"] <= 0).all()), "where": rondo.__file__,
}))
"""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and an empty directory to work in."""

    binaries: Path
    directory: Path
    variables: dict[str, str]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = [str(self.binaries / command[0]), *command[1:]]
        done = subprocess.run(
            program, cwd=self.directory, env=self.variables, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0 or not check, done.stderr + done.stdout
        return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what an earlier build left in the repository must not get into it."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        path, copy = REPOSITORY / name, source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, copy)
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", "built"]
    subprocess.run(pip, cwd=source, check=True, capture_output=True, text=True)
    (built,) = (source / "built").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    (site,) = (place / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--no-deps", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, text=True)
    # A .pth file adds the directory alone: an editable rondo in it is not followed.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + os.linesep)
    variables = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "RONDO_ROOT")}
    return Installed(place / "bin", tmp_path_factory.mktemp("empty"), variables)


def test_the_wheel_has_every_module_the_recipes_and_the_experiments(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("flows", "pipeline", "storage")
        for path in (REPOSITORY / package).rglob("*")
        if path.suffix in (".py", ".j2", ".css", ".js", ".svg")
    }
    mapped = {name for name in expected if name.startswith("flows/api/rondo/")}
    assert mapped == {"flows/api/rondo/__init__.py", "flows/api/rondo/__main__.py"}
    shipped = [*(REPOSITORY / "deploy/recipes").iterdir(), *(REPOSITORY / "deploy/experiments").iterdir()]
    files = {f"rondo/{path.parent.name}/{path.name}" for path in shipped if path.suffix in (".yaml", ".py")}
    assert names == expected - mapped | {"rondo/__init__.py", "rondo/__main__.py"} | files


def test_the_command_works_anywhere(installed: Installed) -> None:
    version = installed.run("rondo", "--version").stdout
    assert installed.run("python", "-m", "rondo", "--version").stdout == version
    rows = json.loads(installed.run("rondo", "recipes", "--format", "json").stdout)
    assert {row["recipe"] for row in rows} == {path.stem for path in (REPOSITORY / "deploy/recipes").glob("*.yaml")}
    assert all(Path(row["file"]).is_relative_to(installed.binaries.parent) for row in rows)
    planned = installed.run("rondo", "frontier", "rounds", "--dry-run", "--seeds", "0", "--format", "json").stdout
    assert {row["rounds"][0] for row in json.loads(planned)} == {"0"}
    installed.run("rondo", "init", "mine", "--judge", "vader")
    assert (installed.directory / "mine.yaml").is_file()
    refused = installed.run("rondo", "run", "sentiment", "--set", "update.beta=0", check=False)
    assert refused.returncode == 1
    assert "rondo/recipes/sentiment.yaml cannot be run:\n  update.beta: 0 is not allowed" in refused.stderr


def test_a_program_runs_a_recipe_with_a_judge_of_its_own(installed: Installed) -> None:
    (installed.directory / "my_judges.py").write_text(JUDGES)
    (installed.directory / "script.py").write_text(SCRIPT)
    recipe = {**TINY, "policy": {**TINY["policy"], "steps": 10}}  # it need not have learned anything
    said = json.loads(installed.run("python", "script.py", json.dumps(recipe)).stdout.splitlines()[-1])
    assert Path(said.pop("where")).is_relative_to(installed.binaries.parent)
    assert said == {"rounds": [0, 1], "judges": ["brief"], "rows": 48, "scored": True}
    files = installed.run("rondo", "path", "brief@1", "completions", "--root", "kept").stdout.split()
    assert files
    assert all(Path(file).is_file() for file in files)


def test_another_package_of_the_same_name_is_named(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "__init__.py").touch()
    shadowed = Installed(installed.binaries, tmp_path, installed.variables)
    done = shadowed.run("python", "-m", "rondo", "--version", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: rondo needs its own package 'storage', and what Python finds under that name")
    assert str(tmp_path / "storage") in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = shadowed.run("python", "-c", "import rondo; rondo.open", check=False)
    assert "ImportError: rondo needs its own package 'storage'" in done.stderr
    # The command itself does not look into the directory that it is started from.
    assert shadowed.run("rondo", "--version").stdout.startswith("rondo ")
