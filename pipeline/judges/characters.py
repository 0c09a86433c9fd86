"""In which scripts an answer is written."""

from collections.abc import Sequence
from importlib.metadata import version

import regex

from pipeline.config import CharactersJudge
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each, judge_version

_LETTER = regex.compile(r"\p{Letter}")


class Characters:
    """Share of the letters that belong to the named scripts (Unicode's Script_Extensions), from 0 to 1.

    Digits, punctuation and emoji are no letters. An answer without letters has none of another script: it scores 1.
    """

    name = "characters"

    def __init__(self, config: CharactersJudge) -> None:
        scripts = "".join(rf"\p{{Script_Extensions={script}}}" for script in config.scripts)
        self._other = regex.compile(rf"[\p{{Letter}}--[{scripts}]]", regex.VERSION1)
        self.version = judge_version(config, version("regex"))

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Components: the numbers of letters, and of those of other scripts."""
        return judge_each(self, items, self._verdict)

    def _verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        letters = len(_LETTER.findall(candidate.text))
        other = len(self._other.findall(candidate.text))
        score = 1.0 - other / letters if letters else 1.0
        return Verdict(score=score, components={"letters": float(letters), "other": float(other)})
