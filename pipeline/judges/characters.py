"""In which scripts an answer is written."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

import regex
from pydantic import Field, field_validator

from pipeline.judges.base import ON_CPU, JudgeConfig, JudgedCandidate, JudgeItem, Resources, RuleJudge, Verdict
from pipeline.judges.registry import judge

_LETTER = regex.compile(r"\p{Letter}")


class CharactersConfig(JudgeConfig):
    """Share of the completion's letters that belong to the named Unicode scripts; 1 if it has no letters."""

    kind: Literal["characters"]
    scripts: tuple[str, ...] = Field(min_length=1, description="Unicode scripts, such as Latin, Han, Cyrillic")

    @field_validator("scripts")
    @classmethod
    def _known(cls, scripts: tuple[str, ...]) -> tuple[str, ...]:
        for script in scripts:
            try:
                regex.compile(rf"\p{{Script_Extensions={script}}}")
            except regex.error:
                raise ValueError(f"'{script}' is no Unicode script: give names such as Latin, Han, Cyrillic") from None
        return scripts


@judge(CharactersConfig)
class CharactersJudge(RuleJudge[CharactersConfig]):
    """Share of the letters that belong to the named scripts (Unicode's Script_Extensions), from 0 to 1.

    Digits, punctuation and emoji are no letters. An answer without letters has none of another script: it scores 1.
    """

    def __init__(self, config: CharactersConfig, resources: Resources = ON_CPU) -> None:
        super().__init__(config, resources)
        scripts = "".join(rf"\p{{Script_Extensions={script}}}" for script in config.scripts)
        self._other = regex.compile(rf"[\p{{Letter}}--[{scripts}]]", regex.VERSION1)

    def depends_on(self) -> Sequence[object]:
        return [version("regex")]

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Scores an answer. Components: the numbers of letters, and of those of other scripts."""
        letters = len(_LETTER.findall(candidate.text))
        other = len(self._other.findall(candidate.text))
        score = 1.0 - other / letters if letters else 1.0
        return Verdict(score=score, components={"letters": float(letters), "other": float(other)})
