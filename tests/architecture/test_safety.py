"""What the source must never contain: ways to run what a file says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("pipeline", "storage", "flows") for path in (ROOT / package).rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("os", "system"), ("os", "popen"), ("yaml", "load")}


def faults(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in FORBIDDEN_CALLS:
                found.append(function.id)
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                pair = (function.value.id, function.attr)
                found += [".".join(pair)] if pair in FORBIDDEN_ATTRIBUTES else []
            found += [
                "shell=True" for word in node.keywords
                if word.arg == "shell" and isinstance(word.value, ast.Constant) and word.value.value
            ]  # fmt: skip
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    assert faults(ast.parse(path.read_text())) == []


def test_the_check_itself_finds_what_it_looks_for() -> None:
    source = "import pickle\nfrom dill import x\neval('1')\ntorch.load(f)\nrun('ls', shell=True)\n"
    assert faults(ast.parse(source)) == ["pickle", "dill", "eval", "torch.load", "shell=True"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_within_the_roof(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600
