"""A regular expression in an answer."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

import regex
from pydantic import Field, field_validator

from pipeline.judges.base import ON_CPU, JudgeConfig, JudgedCandidate, JudgeItem, Resources, RuleJudge, Verdict
from pipeline.judges.registry import judge


class RegexConfig(JudgeConfig):
    """1 if the pattern is found in the completion, else 0."""

    kind: Literal["regex"]
    pattern: str = Field(min_length=1, description="regular expression, in the syntax of the package regex")
    ignore_case: bool = Field(False, description="letters match in either case")
    dot_all: bool = Field(False, description="a dot matches a line's end too")
    whole: bool = Field(
        False, description="the pattern has to match the whole completion, white space around it left out"
    )
    timeout_seconds: float = Field(
        1.0, gt=0, le=60, description="most seconds for one completion; then it is timed_out"
    )

    GIVES_VERDICTS = True

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"pattern '{pattern}' is no regular expression: {error}") from None
        return pattern


@judge(RegexConfig)
class RegexJudge(RuleJudge[RegexConfig]):
    """Searches each answer. A search that takes too long is ended, and the status says so."""

    def __init__(self, config: RegexConfig, resources: Resources = ON_CPU) -> None:
        super().__init__(config, resources)
        flags = (regex.IGNORECASE if config.ignore_case else 0) | (regex.DOTALL if config.dot_all else 0)
        self._pattern = regex.compile(config.pattern, flags)

    def depends_on(self) -> Sequence[object]:
        return [version("regex")]

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Searches the answer; the rationale is the text that was found."""
        seconds = self.config.timeout_seconds
        try:
            if self.config.whole:
                found = self._pattern.fullmatch(candidate.text.strip(), timeout=seconds)
            else:
                found = self._pattern.search(candidate.text, timeout=seconds)
        except TimeoutError:
            reason = f"the pattern was still searching after {seconds:g} s"
            return Verdict(score=None, status="timed_out", rationale=reason)
        return Verdict(score=float(found is not None), rationale=found[0] if found else None)
