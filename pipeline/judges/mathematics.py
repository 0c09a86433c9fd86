"""Whether an answer's mathematics is the reference answer's, by ``math-verify``."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field

from pipeline.errors import JudgeError
from pipeline.judges.base import (
    ON_CPU,
    JudgeConfig,
    JudgedCandidate,
    JudgeItem,
    Judgment,
    Resources,
    RuleJudge,
    Verdict,
    judge_each,
    require_references,
)
from pipeline.judges.registry import judge

_MARKS = ("$", "\\boxed", "\\(", "\\[")
_REASON_LENGTH = 300
_PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy")


class MathConfig(JudgeConfig):
    """1 if the completion's mathematics equals the prompt's reference answer by ``math-verify``, else 0."""

    kind: Literal["math"]
    timeout_seconds: int = Field(5, ge=1, le=600, description="most seconds to read, and to compare, one completion")

    GIVES_VERDICTS = True

    @property
    def needs_reference(self) -> bool:
        return True


@judge(MathConfig)
class MathJudge(RuleJudge[MathConfig]):
    """1 if the expression found in the answer equals the reference's, else 0; also where none is found.

    The reference may be plain (``1/2``), LaTeX, or LaTeX between marks (``$...$``). Time limits are by SIGALRM: this
    judge works in a process's main thread alone.
    """

    def __init__(self, config: MathConfig, resources: Resources = ON_CPU) -> None:
        from math_verify import parse, verify

        super().__init__(config, resources)
        self._read, self._verify = parse, verify

    def depends_on(self) -> Sequence[object]:
        return [[version(package) for package in _PACKAGES]]

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Compares the answers' expressions. Component ``parsed``: whether one was found in the answer.

        Raises:
            JudgeError: a prompt has no reference answer, or one in which there is no mathematics.
        """
        require_references(self, items)
        references = {item.prompt_id: self._reference(item) for item in items}
        return judge_each(self, items, lambda item, candidate: self._compare(references[item.prompt_id], candidate))

    def _reference(self, item: JudgeItem) -> list[Any]:
        from math_verify.errors import TimeoutException

        text = item.reference_answer or ""
        marked = text if any(mark in text for mark in _MARKS) else f"${text}$"
        try:
            found = self._found_in(marked) or self._found_in(text)
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

    def _compare(self, reference: list[Any], candidate: JudgedCandidate) -> Verdict:
        from math_verify.errors import TimeoutException

        try:
            found = self._expressions(candidate.text)
            equal = self._equal(reference, found)
        except TimeoutException:
            return Verdict(
                score=None, status="timed_out", rationale=f"not decided within {self.config.timeout_seconds} s"
            )
        text = str(found[-1])[:_REASON_LENGTH] if found else None
        return Verdict(score=float(equal), components={"parsed": float(bool(found))}, rationale=text)

    def _expressions(self, text: str) -> list[Any]:
        try:
            return self._found_in(text)
        except Exception:  # whatever the parser meets in a model's text: it is no expression
            return []

    def _equal(self, reference: list[Any], found: list[Any]) -> bool:
        try:
            return bool(
                self._verify(reference, found, timeout_seconds=self.config.timeout_seconds, raise_on_error=True)
            )
        except Exception:
            # One of several readings of a text cannot be compared: it is left out, and the others decide.
            return bool(self._verify(reference, found, timeout_seconds=self.config.timeout_seconds))

    def _found_in(self, text: str) -> list[Any]:
        return list(self._read(text, parsing_timeout=self.config.timeout_seconds, raise_on_error=True))
