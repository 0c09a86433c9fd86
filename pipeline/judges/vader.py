"""Sentiment by the VADER lexicon and its rules (Hutto and Gilbert, ICWSM 2014)."""

from collections.abc import Sequence
from importlib.metadata import version

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each


class Vader:
    """The compound score of the answer, from -1 (negative) to 1 (positive); 0 where no word is in the lexicon.

    The prompt is not read. A longer answer holds more sentiment, so that the score favours length: watch it.
    """

    name = "vader"
    version = version("vaderSentiment")

    def __init__(self) -> None:
        self._analyzer = SentimentIntensityAnalyzer()

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Components: the shares of negative, neutral and positive words."""
        return judge_each(self, items, self._score)

    def _score(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        scores: dict[str, float] = self._analyzer.polarity_scores(candidate.text)
        return Verdict(
            score=scores["compound"],
            components={"negative": scores["neg"], "neutral": scores["neu"], "positive": scores["pos"]},
        )
