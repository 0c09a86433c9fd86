"""Whether an answer's Python code does what it should: runs it, in a process with few rights.

What that process can and cannot do is said in ``support/sandbox.py``. Whatever the isolation, tests and answer share
one process: code that sets out to fool its tests can, for it may look at them while it runs.
"""

import secrets
import sys
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from pipeline.errors import JudgeError
from pipeline.judges.base import (
    ON_CPU,
    JudgeConfig,
    JudgedCandidate,
    JudgeItem,
    Resources,
    RuleJudge,
    Verdict,
    last_block,
)
from pipeline.judges.registry import judge

_LANGUAGES = ("", "python", "python3", "py")
_WAITING = 2.0  # times the processor time: a program may also wait
_START_SECONDS = 4.0  # on a machine that others keep busy
_REASON_LENGTH = 300


class CodeConfig(JudgeConfig):
    """1 if the completion's last Python block runs and passes, else 0. Runs what a model wrote: off unless allowed."""

    kind: Literal["code"]
    allow_execution: bool = Field(False, description="the consent to run code that a model wrote, on this machine")
    check: Literal["tests", "output"] = Field(
        "tests",
        description="the reference answer is Python that runs after the completion's (tests), or what it has to print",
    )
    isolation: Literal["namespaces", "limits"] = Field(
        "namespaces",
        description="namespaces: own file system, no network, no other processes; limits: time and memory alone",
    )
    timeout_seconds: float = Field(
        5.0, gt=0, le=600, description="most processor time of one completion; it may wait as long, too, and 4 s"
    )
    memory_mib: int = Field(256, ge=64, le=1_048_576, description="most memory of one completion's process, in MiB")

    GIVES_VERDICTS = True

    @model_validator(mode="after")
    def _allowed(self) -> "CodeConfig":
        if not self.allow_execution:
            raise ValueError(
                "the judge code runs what a model wrote on this machine, and that is off: read what its isolation "
                "guards against, then set allow_execution to true"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        return True


@judge(CodeConfig)
class CodeJudge(RuleJudge[CodeConfig]):
    """1 if the answer's last Python block runs to its end, then passes the tests or prints what it should; else 0.

    0 too where there is no block, and where time or memory runs out. The block has Python's standard library alone.
    """

    def __init__(self, config: CodeConfig, resources: Resources = ON_CPU) -> None:
        from pipeline.judges.support.code_runner import CodeRunner

        super().__init__(config, resources)
        if sys.platform != "linux":
            raise JudgeError(f"the judge code needs Linux, and this is {sys.platform}: choose another judge")
        self._runner = CodeRunner(
            isolation=config.isolation,
            seconds=config.timeout_seconds,
            most_seconds=_WAITING * config.timeout_seconds + _START_SECONDS,
            memory_mib=config.memory_mib,
        )
        probe = self._runner.run("print(1)")
        if probe.status != 0:
            raise JudgeError(
                f"the judge code cannot start a program with isolation '{config.isolation}' here "
                f"({probe.errors.strip() or probe.status}): allow user namespaces, or, where this machine may be "
                "lost, set judge.isolation to limits"
            )

    def depends_on(self) -> Sequence[object]:
        return [sys.version]

    def verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Runs the answer's program, the end of whose standard error is the rationale. Component: ``block``."""
        block, reference = last_block(candidate.text, _LANGUAGES), item.reference_answer or ""
        if block is None:
            return Verdict(score=0.0, components={"block": 0.0}, rationale="no Python between ``` marks")
        mark = secrets.token_hex(16)
        # A program that ends itself before the tests never gets to the mark.
        check = f"\n{reference}\n\n__import__('os').write(1, b'{mark}')\n" if self.config.check == "tests" else ""
        ran = self._runner.run(block + check)
        if ran.not_isolated:
            return Verdict(score=None, status="failed", rationale=ran.errors.strip())
        passed = mark in ran.output if check else ran.output.strip() == reference.strip()
        reason = ran.errors.strip() if ran.status is not None else f"ended after {self._runner.most_seconds:g} s"
        score = float(ran.status == 0 and passed)
        return Verdict(score=score, components={"block": 1.0}, rationale=reason[-_REASON_LENGTH:] or None)
