"""People as a judge: what their choices come to as scores."""

import json
from collections.abc import Sequence

from pipeline.config import PeopleJudge
from pipeline.judges.base import JudgeItem, Judgment, Verdict, judge_version, judgment_of, pair_components
from pipeline.judges.human_labels import Choice, questions_of_candidates, share_for_first


class People:
    """The share of its comparisons that an answer won, a tie counting one half, over all who chose.

    Answers that nobody was shown, or decided on, have no score: their status is ``unlabelled``.
    """

    name = "people"

    def __init__(self, config: PeopleJudge) -> None:
        self._config = config
        self._seed = 0
        self._choices: Sequence[Choice] = ()
        self.version = judge_version(config)

    def use(self, choices: Sequence[Choice], seed: int) -> None:
        """Takes the choices that the judgments to come are made of, and the seed that the pairs were drawn by."""
        self._choices, self._seed = choices, seed

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Components: of each pair who beats whom, as a share of the labellers; the raw verdict names these."""
        return [judgment for item in items for judgment in self._judge(item)]

    def _judge(self, item: JudgeItem) -> list[Judgment]:
        beats: dict[tuple[int, int], float] = {}
        said: dict[int, list[dict[str, object]]] = {}
        for question in questions_of_candidates([item], self._config.pairs, self._seed):
            share = share_for_first(question, self._choices)
            if share is None:
                continue
            first, second = (answer.index for answer in question.answers)
            beats |= {(first, second): share, (second, first): 1 - share}
            for index in (first, second):
                said.setdefault(index, []).extend(
                    {"labeller": choice["labeller"], "choice": choice["choice"], "better": choice["better"]}
                    for choice in self._choices
                    if choice["question"] == question.key
                )
        judgments = []
        for candidate in item.candidates:
            won = [share for (winner, _), share in beats.items() if winner == candidate.index]
            verdict = (
                Verdict(
                    score=sum(won) / len(won),
                    components=pair_components(candidate.index, beats),
                    raw=json.dumps(said[candidate.index], ensure_ascii=False),
                )
                if won
                else Verdict(score=None, status="unlabelled")
            )
            judgments.append(judgment_of(self, item, candidate, verdict, 0.0))
        return judgments
