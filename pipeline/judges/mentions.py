"""Whether an answer speaks of what it should: the words of the reference answer in it."""

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pipeline.data.words import WORDS_VERSION, words
from pipeline.errors import JudgeError
from pipeline.judges.base import JudgeConfig, JudgedCandidate, JudgeItem, RuleJudge, Verdict
from pipeline.judges.registry import judge


class MentionsConfig(JudgeConfig):
    """Share of the reference answer's different words that stand in the completion, in capital or small letters."""

    kind: Literal["mentions_reference"]
    json_field: str | None = Field(
        None,
        min_length=1,
        description="of reference answers that are JSON objects, the field with the words: a text or a list of texts; "
        "the whole reference answer if empty",
    )

    @property
    def needs_reference(self) -> bool:
        return True


@judge(MentionsConfig)
class MentionsJudge(RuleJudge[MentionsConfig]):
    """``k / n`` for the k of the n different words of the reference that are words of the answer, too.

    Words are compared whole and without regard to case: "lighthouses" does not mention a lighthouse.
    """

    def depends_on(self) -> Sequence[object]:
        return [WORDS_VERSION]

    def verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Looks for each word. Component ``words``: how many there are; the rationale names those that are missing.

        Raises:
            JudgeError: the reference answer has no words, or not the field that the recipe names.
        """
        wanted = list(dict.fromkeys(words(self._text(item))))
        if not wanted:
            raise JudgeError(
                f"the reference answer of prompt {item.prompt_id} has no words, which the judge {self.name} looks "
                "for: leave this prompt out, or choose another judge"
            )
        said = set(words(candidate.text))
        missing = [word for word in wanted if word not in said]
        return Verdict(
            score=1 - len(missing) / len(wanted),
            components={"words": float(len(wanted))},
            rationale=f"missing: {', '.join(missing)}" if missing else None,
        )

    def _text(self, item: JudgeItem) -> str:
        reference, name = item.reference_answer or "", self.config.json_field
        if name is None:
            return reference
        try:
            stated = json.loads(reference)
        except (ValueError, RecursionError):
            stated = None
        value = stated.get(name) if isinstance(stated, dict) else None
        texts: Sequence[object] = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise JudgeError(
                f"the reference answer of prompt {item.prompt_id}, {reference!r:.80}, is no JSON object with a text or "
                f"a list of texts in '{name}': correct judge.json_field, or leave it out"
            )
        return " ".join(map(str, texts))
