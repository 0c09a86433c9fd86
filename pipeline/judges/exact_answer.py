"""The verifier of a task with one right answer."""

from typing import Literal

from pydantic import Field

from pipeline.judges.base import JudgeConfig, JudgedCandidate, JudgeItem, RuleJudge, Verdict
from pipeline.judges.registry import judge


class ExactAnswerConfig(JudgeConfig):
    """1 if the completion equals the prompt's reference answer, else 0; surrounding white space is ignored."""

    kind: Literal["exact_answer"]
    after: str | None = Field(
        None, min_length=1, description="the answer is what follows the last of these marks; the whole text if empty"
    )

    GIVES_VERDICTS = True

    @property
    def needs_reference(self) -> bool:
        return True


@judge(ExactAnswerConfig)
class ExactAnswerJudge(RuleJudge[ExactAnswerConfig]):
    """Compares the texts of the answer and of the prompt's reference answer."""

    def verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Compares the answer with the reference; no components."""
        after = self.config.after
        text = candidate.text if after is None else candidate.text.rpartition(after)[2]
        return Verdict(score=float(text.strip() == (item.reference_answer or "").strip()))
