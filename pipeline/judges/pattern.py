"""A regular expression in an answer."""

from collections.abc import Sequence
from importlib.metadata import version

import regex

from pipeline.config import RegexJudge
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each, judge_version


class Pattern:
    """1 where the pattern is found, else 0. A search that takes too long is ended, and the status says so."""

    name = "regex"

    def __init__(self, config: RegexJudge) -> None:
        flags = (regex.IGNORECASE if config.ignore_case else 0) | (regex.DOTALL if config.dot_all else 0)
        self._pattern = regex.compile(config.pattern, flags)
        self._config = config
        self.version = judge_version(config, version("regex"))

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """The rationale is the text that was found."""
        return judge_each(self, items, self._verdict)

    def _verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        seconds = self._config.timeout_seconds
        try:
            if self._config.whole:
                found = self._pattern.fullmatch(candidate.text.strip(), timeout=seconds)
            else:
                found = self._pattern.search(candidate.text, timeout=seconds)
        except TimeoutError:
            reason = f"the pattern was still searching after {seconds:g} s"
            return Verdict(score=None, status="timed_out", rationale=reason)
        return Verdict(score=float(found is not None), rationale=found[0] if found else None)
