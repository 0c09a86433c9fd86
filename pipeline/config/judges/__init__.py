"""The judges of a recipe."""

from typing import Annotated

from pydantic import Field

from pipeline.config.judges.base import JudgeConfig
from pipeline.config.judges.ensemble import EnsembleJudge, Member, SingleJudge
from pipeline.config.judges.implicit import ImplicitJudge
from pipeline.config.judges.llm import Listwise, LlmJudge, Pairwise, Rubric
from pipeline.config.judges.noisy import NoisyJudge
from pipeline.config.judges.people import PeopleConfig, PeopleJudge
from pipeline.config.judges.reward_model import Head, RewardModelJudge
from pipeline.config.judges.rules import (
    CharactersJudge,
    CodeJudge,
    ExactAnswerJudge,
    GrammarJudge,
    JsonSchemaJudge,
    LengthJudge,
    MathJudge,
    PythonJudge,
    RegexJudge,
    VaderJudge,
)

Judge = Annotated[SingleJudge | EnsembleJudge | NoisyJudge | ImplicitJudge | PeopleJudge, Field(discriminator="kind")]

__all__ = [
    "CharactersJudge",
    "CodeJudge",
    "EnsembleJudge",
    "ExactAnswerJudge",
    "GrammarJudge",
    "Head",
    "ImplicitJudge",
    "JsonSchemaJudge",
    "Judge",
    "JudgeConfig",
    "LengthJudge",
    "Listwise",
    "LlmJudge",
    "MathJudge",
    "Member",
    "NoisyJudge",
    "Pairwise",
    "PeopleConfig",
    "PeopleJudge",
    "PythonJudge",
    "RegexJudge",
    "RewardModelJudge",
    "Rubric",
    "VaderJudge",
]
