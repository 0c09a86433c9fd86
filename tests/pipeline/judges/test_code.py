"""Code that a model wrote: what it can do to pass, and what it cannot do to the machine."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import JudgeError
from pipeline.judges import Judge, JudgedCandidate, JudgeItem, Judgment, make_judge
from pipeline.judges.code import CodeConfig

TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nIt adds."


def judged(judge: Judge, *codes: str, reference: str = TESTS) -> list[Judgment]:
    candidates = [
        JudgedCandidate(index=k, text=code if "```" in code else fenced(code), finish_reason="stop")
        for k, code in enumerate(codes)
    ]
    return judge.judge([JudgeItem(prompt_id="p", prompt_text="p", reference_answer=reference, candidates=candidates)])


def make(**settings: Any) -> Judge:
    return make_judge(CodeConfig(kind="code", allow_execution=True, **{"timeout_seconds": 1.0, **settings}))


@pytest.fixture(scope="module", params=["limits", "namespaces"])
def judge(request: pytest.FixtureRequest) -> Judge:
    try:
        return make(isolation=request.param)
    except JudgeError as error:
        pytest.skip(f"this machine allows no user namespaces: {error}")


def test_running_code_has_to_be_allowed() -> None:
    with pytest.raises(ValidationError, match="runs what a model wrote on this machine, and that is off"):
        CodeConfig(kind="code")


def test_code_passes_its_tests_or_not(judge: Judge) -> None:
    right = "def add(a, b):\n    return a + b"
    codes = (
        right, "def add(a, b):\n    return a - b", "def add(a, b)", "", "raise SystemExit(0)",
        "import os\nos._exit(0)", "print('right')\n" + right, right + "\nadd(", "import numpy", "no block ``` at all",
    )  # fmt: skip
    judgments = judged(judge, *codes)
    assert [judgment.score for judgment in judgments] == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert (judgments[1].rationale or "").endswith("AssertionError")
    assert judgments[9].rationale == "no Python between ``` marks"


def test_time_and_memory_are_limited(judge: Judge) -> None:
    start = time.monotonic()
    judgments = judged(judge, "while True: pass", "x = bytearray(10**9)",
                       "with open('big', 'wb') as f: f.write(bytes(10**7))", "print('x' * 10**8)")  # fmt: skip
    assert [judgment.score for judgment in judgments] == [0] * 4
    assert time.monotonic() - start < 20  # 1 s of processor time, and starts
    assert "MemoryError" in (judgments[1].rationale or "")


def test_the_environment_is_empty(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RONDO_TEST_SECRET", "secret")
    (judgment,) = judged(judge, "import os\ndef add(a, b):\n    return a + b", reference="assert set(os.environ) <= "
                         "{'LC_ALL', 'HOME', 'LC_CTYPE'}, os.environ")  # fmt: skip
    assert judgment.score == 1, judgment.rationale


ATTEMPTS = {
    "read a file of the user": "open({file!r}).read()",
    "write a file of the user": "open({file!r}, 'a').write('x')",
    "delete a file of the user": "import os; os.remove({file!r})",
    "write to the system": "open('/usr/lib/x', 'w')",
    "reach a local server": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "reach the network": "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
    "see a process": "import os; os.kill({pid}, 0)",
    "read a process": "open('/proc/{pid}/environ').read()",
    "become root": "import os; os.setuid(0)",
    "mount": "import ctypes, os; ctypes.CDLL(None).umount2(b'/usr', 2) and os.abort()",
    "leave the root": "import os; os.chroot('/tmp')",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_isolated_code_cannot(attempt: str, tmp_path: Path) -> None:
    import socket

    try:
        isolated = make(isolation="namespaces")
    except JudgeError as error:
        pytest.skip(f"this machine allows no user namespaces: {error}")
    file = tmp_path / "precious"
    file.write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = ATTEMPTS[attempt].format(file=str(file), port=port, pid=os.getpid())
        (judgment,) = judged(isolated, code, reference="pass")
    assert judgment.score == 0, "it could"
    assert file.read_text() == "precious"


def test_what_isolated_code_starts_ends_with_it() -> None:
    try:
        isolated = make(isolation="namespaces")
    except JudgeError as error:
        pytest.skip(f"this machine allows no user namespaces: {error}")
    waiting = judged(isolated, "import time\ntime.sleep(60)", reference="pass")
    assert [(judgment.score, judgment.rationale) for judgment in waiting] == [(0, "ended after 6 s")]
    code = "import os\nif os.fork() == 0:\n    os.setsid()\n    os.execv('/usr/bin/env', ['env', 'sleep', '98.7654'])"
    (judgment,) = judged(isolated, code, reference="pass")
    assert judgment.score == 1
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"98.7654" in _read(path)]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_output_is_compared() -> None:
    judge = make(isolation="limits", check="output")
    judgments = judged(judge, "print(40 + 2)", "print(42); print(1)", "print(42); raise ValueError", reference="42\n")
    assert [judgment.score for judgment in judgments] == [1, 0, 0]


def test_a_machine_without_namespaces_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipeline.judges.support import sandbox

    refusing = tmp_path / "sandbox.py"
    refusing.write_text("import sys\nsys.stderr.write('sandbox: Operation not permitted: unshare')\nsys.exit(120)")
    monkeypatch.setattr(sandbox, "__file__", str(refusing))
    with pytest.raises(JudgeError, match=r"Operation not permitted: unshare\): allow user namespaces, or, where"):
        make(isolation="namespaces")
