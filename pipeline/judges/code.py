"""Whether an answer's Python code does what it should: runs it, in a process with few rights.

What that process can and cannot do is said in ``sandbox.py``. Whatever the isolation, tests and answer share one
process: code that sets out to fool its tests can, for it may look at them while it runs.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import CodeJudge
from pipeline.errors import JudgeError
from pipeline.judges import sandbox
from pipeline.judges.base import (
    JudgedCandidate,
    JudgeItem,
    Judgment,
    Verdict,
    judge_each,
    judge_version,
    require_references,
)
from pipeline.judges.fences import last_block

_LANGUAGES = ("", "python", "python3", "py")
_WAITING = 2.0  # times the processor time: a program may also wait
_START_SECONDS = 4.0  # on a machine that others keep busy
_REASON_LENGTH = 300
_OUTPUT_BYTES = 65_536


@dataclass(frozen=True)
class _Ran:
    status: int | None
    output: str
    errors: str


class Code:
    """1 where the answer's last Python block runs to its end, then passes the tests or prints what it should; else 0.

    0 too where there is no block, and where time or memory runs out. The block has Python's standard library alone.
    """

    name = "code"

    def __init__(self, config: CodeJudge) -> None:
        self._config = config
        self._most_seconds = _WAITING * config.timeout_seconds + _START_SECONDS
        if sys.platform != "linux":
            raise JudgeError(f"the judge code needs Linux, and this is {sys.platform}: choose another judge")
        probe = self._run("print(1)")
        if probe.status != 0:
            raise JudgeError(
                f"the judge code cannot start a program with isolation '{config.isolation}' here "
                f"({probe.errors.strip() or probe.status}): allow user namespaces, or, where this machine may be "
                "lost, set judge.isolation to limits"
            )
        self.version = judge_version(config, sys.version)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """The rationale is the end of what the program wrote to its standard error.

        Raises:
            JudgeError: a prompt has no reference answer.
        """
        require_references(self, items)
        return judge_each(self, items, self._verdict)

    def _verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        block, reference = last_block(candidate.text, _LANGUAGES), item.reference_answer or ""
        if block is None:
            return Verdict(score=0.0, components={"block": 0.0}, rationale="no Python between ``` marks")
        mark = secrets.token_hex(16)
        # A program that ends itself before the tests never gets to the mark.
        check = f"\n{reference}\n\n__import__('os').write(1, b'{mark}')\n" if self._config.check == "tests" else ""
        ran = self._run(block + check)
        if ran.status == sandbox.NOT_ISOLATED and ran.errors.startswith("sandbox: "):
            return Verdict(score=None, status="failed", rationale=ran.errors.strip())
        passed = mark in ran.output if check else ran.output.strip() == reference.strip()
        reason = ran.errors.strip() if ran.status is not None else f"ended after {self._most_seconds:g} s"
        score = float(ran.status == 0 and passed)
        return Verdict(score=score, components={"block": 1.0}, rationale=reason[-_REASON_LENGTH:] or None)

    def _run(self, program: str) -> _Ran:
        config = self._config
        with tempfile.TemporaryDirectory(prefix="rondo-code-") as place:
            empty, output, errors = Path(place, "root"), Path(place, "output"), Path(place, "errors")
            empty.mkdir()
            settings = {
                "isolation": config.isolation, "seconds": config.timeout_seconds, "memory_mib": config.memory_mib,
                "root": str(empty),
            }  # fmt: skip
            command = [sys.executable, "-I", "-S", sandbox.__file__, json.dumps(settings)]
            with output.open("wb") as out, errors.open("wb") as err:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=empty, env={}, start_new_session=True
                )
                status: int | None
                try:
                    process.communicate(program.encode(errors="replace"), self._most_seconds)
                    status = process.returncode
                except subprocess.TimeoutExpired:
                    status = None
                finally:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            return _Ran(status, _start_of(output), _start_of(errors))


def _start_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_OUTPUT_BYTES).decode(errors="replace")
