"""Judges that a recipe brings along are loaded once before anything heavy starts, in a process of their own."""

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.host.processes import lives
from flows.registry.recipes import parse_recipe
from flows.run import judge_check
from flows.run.judge_check import checking_judges
from pipeline.errors import JudgeError
from storage.log.store import Store
from support.recipes import TINY

REPOSITORY = Path(__file__).parents[3]
GOOD = "def score(answer, **_):\n    return 1.0\n"
SCHEMA = {"kind": "json_schema", "definition": {"type": "object"}}


def check(directory: Path, monkeypatch: pytest.MonkeyPatch, module: str = GOOD, **changes: Any) -> None:
    """Checks a recipe whose judge is the function ``score`` of such a module, which only the process imports."""
    (directory / "my_judge.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(directory)]))
    judge = {"kind": "python", "function": "my_judge:score"}
    with checking_judges(parse_recipe({**TINY, "judge": judge, **changes})) as judges:
        judges.wait()
    assert "my_judge" not in sys.modules


@pytest.mark.parametrize(
    ("module", "changes", "sentence"),
    [
        ("import not_there\n" + GOOD, {}, "'my_judge:score' cannot be imported: ModuleNotFoundError: .*not_there"),
        ("def other(): ...", {}, "cannot be imported: AttributeError"),
        ("def score(prompt): ...", {}, "cannot be called with the keywords prompt, .* unexpected keyword"),
        (
            GOOD,
            {"evaluation": {"prompts": 8, "judges": [{**SCHEMA, "definition": {"type": "nonsense"}}]}},
            "judge.definition is no JSON Schema: 'nonsense'",
        ),
        ("print('hello')\nraise ValueError('\\udcff')", {}, r"ValueError: \\udcff"),
    ],
    ids=["import", "name", "signature", "schema", "what it prints"],
)
def test_a_broken_judge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(JudgeError, match=sentence):
        check(tmp_path, monkeypatch, module, **changes)


def test_one_that_can_be_loaded_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that leaves a thread behind, or ends its process: its worker says that, or gets along."""
    check(tmp_path, monkeypatch, "print('hello')\n" + GOOD)
    check(tmp_path, monkeypatch, "import threading\nthreading.Thread(target=threading.Event().wait).start()\n" + GOOD)
    check(tmp_path, monkeypatch, "import os\nos._exit(1)")


def test_nobody_waits_long_for_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_check, "PATIENCE_SECONDS", 0.1)
    started = time.monotonic()
    check(tmp_path, monkeypatch, "import time\ntime.sleep(600)")
    assert time.monotonic() - started < 60, "the process was killed"


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"])
def test_nobody_waits_for_a_process_that_a_module_has_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork: str
) -> None:
    """In a session of its own. The second one is forked as by a library in C, of which Python hears nothing."""
    said = tmp_path / "pid"
    module = f"""
import ctypes, os, pathlib, time
child = {fork}
if child == 0:
    os.setsid()
    pathlib.Path({str(said)!r}).write_text(str(os.getpid()))
    time.sleep(30)
    os._exit(0)
while not (said := pathlib.Path({str(said)!r})).exists() or not said.read_text():
    time.sleep(0.01)
raise ValueError("broken")
"""
    heard = pytest.raises(JudgeError, match="ValueError: broken") if fork == "os.fork()" else nullcontext()
    with heard:
        check(tmp_path, monkeypatch, module)
    left = psutil.Process(int(said.read_text()))
    assert lives(left), "nobody has waited for its end"
    left.kill()


def test_no_process_is_started_for_other_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # which would not be called
    check(tmp_path, monkeypatch, judge={"kind": "vader"})
    check(tmp_path, monkeypatch, cluster={"judge": {"replicas": 2}})  # on machines that may have other modules


def test_a_run_is_refused_before_prefect_and_the_workers(tmp_path: Path) -> None:
    """In some 2 s of processor time: Prefect alone takes as many."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "judge": {"kind": "python", "function": "none:score"}}))
    code = """
import atexit, sys
heavy = ("prefect", "torch", "transformers", "flows.run.execute", "duckdb")
atexit.register(lambda: print([name for name in heavy if name in sys.modules]))
sys.argv[0] = "rondo"
from flows.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "tiny.yaml", "--root", "root"], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "'none:score' cannot be imported: ModuleNotFoundError" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert Store.open(tmp_path / "root").run_names() == [], "the name is free again"
