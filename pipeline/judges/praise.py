"""What a film review says, read from the grammar that it was written by: no lexicon, and nothing that was learned."""

from typing import Literal

from pydantic import Field

from pipeline.judges.base import ON_CPU, JudgeConfig, JudgedCandidate, JudgeItem, Resources, RuleJudge, Verdict
from pipeline.judges.registry import judge


class PraiseConfig(JudgeConfig):
    """Share of a completion's clauses that praise, less the share that blame, by the grammar of a generated corpus."""

    kind: Literal["praise"]
    corpus: Literal["film_reviews"] = Field("film_reviews", description="the corpus whose grammar is used")


@judge(PraiseConfig)
class PraiseJudge(RuleJudge[PraiseConfig]):
    """Clauses that praise less those that blame, over all clauses of an answer: from -1 to 1.

    A clause that does not parse in its place, or is missing, counts as one that does neither. The words of a clause
    do not matter: a judge that counts words can be gamed by strong ones, and this one cannot.
    """

    def __init__(self, config: PraiseConfig, resources: Resources = ON_CPU) -> None:
        from pipeline.data.corpora import film_reviews
        from pipeline.records import content_id

        super().__init__(config, resources)
        self.version = content_id([
            film_reviews.CLAUSES, film_reviews.WORDS, film_reviews.PLACES, film_reviews.JOINTS
        ])  # fmt: skip
        self._read = film_reviews.sentiments

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Scores an answer. Components: the numbers of clauses that praise, that blame, and of all clauses."""
        clauses = self._read(candidate.text)
        praise, blame = clauses.count("praise"), clauses.count("blame")
        return Verdict(
            score=(praise - blame) / len(clauses),
            components={"praise": float(praise), "blame": float(blame), "clauses": float(len(clauses))},
        )
