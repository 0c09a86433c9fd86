"""Whether an answer's mathematics is the reference answer's, by ``math-verify``."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException

from pipeline.config import MathJudge
from pipeline.errors import JudgeError
from pipeline.judges.base import (
    JudgedCandidate,
    JudgeItem,
    Judgment,
    Verdict,
    judge_each,
    judge_version,
    require_references,
)

_MARKS = ("$", "\\boxed", "\\(", "\\[")
_REASON_LENGTH = 300
_PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy")


class Mathematics:
    """1 where the expression found in the answer equals the reference's, else 0; also where none is found.

    The reference may be plain (``1/2``), LaTeX, or LaTeX between marks (``$...$``). Time limits are by SIGALRM: this
    judge works in a process's main thread alone.
    """

    name = "math"

    def __init__(self, config: MathJudge) -> None:
        self._seconds = config.timeout_seconds
        self.version = judge_version(config, [version(package) for package in _PACKAGES])

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Component ``parsed``: whether an expression was found in the answer.

        Raises:
            JudgeError: a prompt has no reference answer, or one in which there is no mathematics.
        """
        require_references(self, items)
        references = {item.prompt_id: self._reference(item) for item in items}
        return judge_each(self, items, lambda item, candidate: self._verdict(references[item.prompt_id], candidate))

    def _reference(self, item: JudgeItem) -> list[Any]:
        text = item.reference_answer or ""
        marked = text if any(mark in text for mark in _MARKS) else f"${text}$"
        try:
            found = self._parse(marked) or self._parse(text)
        except (Exception, TimeoutException) as error:
            found, reason = [], f": {error}"
        else:
            reason = ""
        if not found:
            raise JudgeError(
                f"prompt {item.prompt_id} has the reference answer {text!r}, in which the judge math finds no "
                f"mathematics{reason}: correct it, or choose another judge"
            )
        return found

    def _verdict(self, reference: list[Any], candidate: JudgedCandidate) -> Verdict:
        try:
            found = self._found(candidate.text)
            equal = self._equal(reference, found)
        except TimeoutException:
            return Verdict(score=None, status="timed_out", rationale=f"not decided within {self._seconds} s")
        text = str(found[-1])[:_REASON_LENGTH] if found else None
        return Verdict(score=float(equal), components={"parsed": float(bool(found))}, rationale=text)

    def _found(self, text: str) -> list[Any]:
        try:
            return self._parse(text)
        except Exception:  # whatever the parser meets in a model's text: it is no expression
            return []

    def _equal(self, reference: list[Any], found: list[Any]) -> bool:
        try:
            return bool(verify(reference, found, timeout_seconds=self._seconds, raise_on_error=True))
        except Exception:
            # One of several readings of a text cannot be compared: it is left out, and the others decide.
            return bool(verify(reference, found, timeout_seconds=self._seconds))

    def _parse(self, text: str) -> list[Any]:
        return list(parse(text, parsing_timeout=self._seconds, raise_on_error=True))
