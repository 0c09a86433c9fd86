"""Judges: what scores the candidates of a prompt. ``base`` holds the protocol; each judge has a file."""

from pipeline.config import ExactAnswerJudge, GrammarJudge, Judge, RewardModelJudge
from pipeline.judges.base import Judge as JudgeProtocol
from pipeline.judges.base import (
    JudgedCandidate,
    JudgeItem,
    Judgment,
    judge_items,
    judgments_table,
)

__all__ = [
    "JudgeItem",
    "JudgeProtocol",
    "JudgedCandidate",
    "Judgment",
    "judge_items",
    "judgments_table",
    "make_judge",
]


def make_judge(config: Judge, *, device: str = "cpu", threads: int = 1) -> JudgeProtocol:
    """The judge of this part of a recipe, loaded. ``device`` and ``threads`` are those of a reward model.

    Raises:
        JudgeError: it cannot be loaded.
    """
    # Imported where needed: a judge by rules needs no torch, and its worker should start at once.
    if isinstance(config, RewardModelJudge):
        from pipeline.judges.reward_model import RewardModel

        return RewardModel(config, device=device, threads=threads)
    if isinstance(config, ExactAnswerJudge):
        from pipeline.judges.exact_answer import ExactAnswer

        return ExactAnswer(config.after)
    if isinstance(config, GrammarJudge):
        from pipeline.judges.grammar import Grammar

        return Grammar()
    from pipeline.judges.vader import Vader

    return Vader()
