"""Whether an answer is still one that the grammar of the film reviews could have written."""

from typing import Literal

from pydantic import Field

from pipeline.judges.base import ON_CPU, JudgeConfig, JudgedCandidate, JudgeItem, Resources, RuleJudge, Verdict
from pipeline.judges.registry import judge


class GrammarConfig(JudgeConfig):
    """Share of a completion's clauses that the grammar of a generated corpus can produce, from 0 to 1."""

    kind: Literal["grammar"]
    corpus: Literal["film_reviews"] = Field("film_reviews", description="the corpus whose grammar is used")


@judge(GrammarConfig)
class GrammarJudge(RuleJudge[GrammarConfig]):
    """The share of an answer's clauses that parse in their place, from 0 to 1; a missing clause does not parse."""

    def __init__(self, config: GrammarConfig, resources: Resources = ON_CPU) -> None:
        from pipeline.data.corpora import film_reviews
        from pipeline.records import content_id

        super().__init__(config, resources)
        self.version = content_id([
            film_reviews.CLAUSES, film_reviews.WORDS, film_reviews.PLACES, film_reviews.JOINTS
        ])  # fmt: skip
        self._parse = film_reviews.parse

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Scores an answer. Components: the numbers of clauses that parse, and of all clauses."""
        parsed, total = self._parse(candidate.text)
        return Verdict(score=parsed / total, components={"parsed": float(parsed), "clauses": float(total)})
