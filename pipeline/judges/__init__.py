"""Judges: what scores the candidates of a prompt. ``base`` holds the protocol; each judge has a file."""

import importlib

from pipeline.config import (
    EnsembleJudge,
    GrammarJudge,
    ImplicitJudge,
    Judge,
    LlmJudge,
    NoisyJudge,
    RewardModelJudge,
    VaderJudge,
)
from pipeline.errors import JudgeError
from pipeline.judges.base import Judge as JudgeProtocol
from pipeline.judges.base import (
    JudgedCandidate,
    JudgeItem,
    Judgment,
    ResponseCache,
    judge_items,
    judgments_table,
)

__all__ = [
    "JudgeItem",
    "JudgeProtocol",
    "JudgedCandidate",
    "Judgment",
    "ResponseCache",
    "judge_items",
    "judgments_table",
    "make_judge",
]


_BY_SETTINGS = {
    "exact_answer": "exact_answer:ExactAnswer",
    "regex": "pattern:Pattern",
    "json_schema": "json_schema:JsonSchema",
    "length": "length:Length",
    "characters": "characters:Characters",
    "math": "mathematics:Mathematics",
    "code": "code:Code",
    "python": "python_function:PythonFunction",
    "people": "people:People",
}
"""Module and class of the judges that are made from their settings alone."""


def make_judge(
    config: Judge, *, device: str = "cpu", threads: int = 1, cache: ResponseCache | None = None
) -> JudgeProtocol:
    """The judge of this part of a recipe, loaded.

    Args:
        device, threads: those of a reward model, and of policies.
        cache: where a language model's replies are kept; without one they are asked for again.

    Raises:
        JudgeError: it cannot be loaded.
    """
    # Imported where needed: a judge by rules needs no torch, and its worker should start at once.
    match config:
        case RewardModelJudge():
            from pipeline.judges.reward_model import RewardModel

            return RewardModel(config, device=device, threads=threads)
        case LlmJudge():
            from pipeline.judges.llm import Llm

            return Llm(config, cache)
        case EnsembleJudge():
            from pipeline.judges.ensemble import Ensemble

            members = [
                make_judge(member.judge, device=device, threads=threads, cache=cache) for member in config.members
            ]
            return Ensemble(config, members)
        case ImplicitJudge():
            from pipeline.judges.implicit import ImplicitReward

            return ImplicitReward(config, device=device, threads=threads)
        case NoisyJudge():
            from pipeline.judges.noisy import Noisy

            return Noisy(config, make_judge(config.judge, device=device, threads=threads, cache=cache))
        case VaderJudge():
            from pipeline.judges.vader import Vader

            return Vader()
        case GrammarJudge():
            from pipeline.judges.grammar import Grammar

            return Grammar()
    module, _, name = _BY_SETTINGS[config.kind].partition(":")
    try:
        made: JudgeProtocol = getattr(importlib.import_module(f"pipeline.judges.{module}"), name)(config)
    except ImportError as error:
        message = f"the judge {config.kind} needs another package ({error}): pip install 'rondo[judges]'"
        raise JudgeError(message) from error
    return made
