"""Whether an answer is still one that the grammar of the film reviews could have written."""

from collections.abc import Sequence

from pipeline.data.corpora.film_reviews import CLAUSES, JOINTS, PLACES, WORDS, parse
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each
from pipeline.records import content_id


class Grammar:
    """The share of an answer's clauses that parse in their place, from 0 to 1; a missing clause does not parse."""

    name = "grammar"
    version = content_id([CLAUSES, WORDS, PLACES, JOINTS])

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Components: the numbers of clauses that parse, and of all clauses."""
        return judge_each(self, items, _score)


def _score(_item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
    parsed, total = parse(candidate.text)
    return Verdict(score=parsed / total, components={"parsed": float(parsed), "clauses": float(total)})
