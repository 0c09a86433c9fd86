"""Sentiment by the VADER lexicon and its rules (Hutto and Gilbert, ICWSM 2014)."""

from importlib.metadata import version
from typing import Literal

from pipeline.judges.base import ON_CPU, JudgeConfig, JudgedCandidate, JudgeItem, Resources, RuleJudge, Verdict
from pipeline.judges.registry import judge


class VaderConfig(JudgeConfig):
    """Sentiment by the VADER lexicon: the compound score, from -1 to 1."""

    kind: Literal["vader"]


@judge(VaderConfig)
class VaderJudge(RuleJudge[VaderConfig]):
    """The compound score of the answer, from -1 (negative) to 1 (positive); 0 if no word is in the lexicon.

    The prompt is not read. A longer answer holds more sentiment, so that the score favours length: watch it.
    """

    def __init__(self, config: VaderConfig, resources: Resources = ON_CPU) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        super().__init__(config, resources)
        self.version = version("vaderSentiment")
        self._analyzer = SentimentIntensityAnalyzer()

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Scores an answer. Components: the shares of negative, neutral and positive words."""
        scores: dict[str, float] = self._analyzer.polarity_scores(candidate.text)
        return Verdict(
            score=scores["compound"],
            components={"negative": scores["neg"], "neutral": scores["neu"], "positive": scores["pos"]},
        )
