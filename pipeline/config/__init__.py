"""The recipe: a tree of frozen parts, one module each."""

from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.judges import ExactAnswerJudge, GrammarJudge, Judge, RewardModelJudge, VaderJudge
from pipeline.config.policy import PretrainedPolicy, WarmStartPolicy
from pipeline.config.preferences import PreferencesConfig
from pipeline.config.prompts import DatasetPrompts, FilePrompts, GeneratedPrompts, Prompts
from pipeline.config.recipe import DevicesConfig, Recipe
from pipeline.config.sampling import SamplingConfig
from pipeline.config.update import OBJECTIVES, LoraConfig, UpdateConfig

__all__ = [
    "OBJECTIVES",
    "DatasetPrompts",
    "DevicesConfig",
    "EvaluationConfig",
    "ExactAnswerJudge",
    "FilePrompts",
    "GeneratedPrompts",
    "GrammarJudge",
    "Judge",
    "LoraConfig",
    "PreferencesConfig",
    "PretrainedPolicy",
    "Prompts",
    "Recipe",
    "RewardModelJudge",
    "SamplingConfig",
    "UpdateConfig",
    "VaderJudge",
    "WarmStartPolicy",
]
