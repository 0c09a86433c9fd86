"""The recipe: a tree of frozen parts, one module each."""

from pipeline.config.cluster import ClusterConfig, ReplicasConfig
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.judges import (
    CharactersJudge,
    CodeJudge,
    EnsembleJudge,
    ExactAnswerJudge,
    GrammarJudge,
    ImplicitJudge,
    JsonSchemaJudge,
    Judge,
    JudgeConfig,
    LengthJudge,
    LlmJudge,
    MathJudge,
    NoisyJudge,
    PeopleConfig,
    PeopleJudge,
    PythonJudge,
    RegexJudge,
    RewardModelJudge,
    VaderJudge,
)
from pipeline.config.notifications import NotificationsConfig
from pipeline.config.policy import PretrainedPolicy, WarmStartPolicy
from pipeline.config.preferences import PreferencesConfig
from pipeline.config.prompts import DatasetPrompts, FilePrompts, GeneratedPrompts, Prompts
from pipeline.config.recipe import DevicesConfig, Recipe
from pipeline.config.sampling import SamplingConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.config.update import OBJECTIVES, LoraConfig, UpdateConfig

__all__ = [
    "OBJECTIVES",
    "CharactersJudge",
    "ClusterConfig",
    "CodeJudge",
    "DatasetPrompts",
    "DevicesConfig",
    "EnsembleJudge",
    "EvaluationConfig",
    "ExactAnswerJudge",
    "FilePrompts",
    "GeneratedPrompts",
    "GrammarJudge",
    "ImplicitJudge",
    "JsonSchemaJudge",
    "Judge",
    "JudgeConfig",
    "LengthJudge",
    "LlmJudge",
    "LoraConfig",
    "MathJudge",
    "NoisyJudge",
    "NotificationsConfig",
    "PeopleConfig",
    "PeopleJudge",
    "PreferencesConfig",
    "PretrainedPolicy",
    "Prompts",
    "PythonJudge",
    "Recipe",
    "RegexJudge",
    "ReplicasConfig",
    "RewardModelJudge",
    "SamplingConfig",
    "TrackingConfig",
    "UpdateConfig",
    "VaderJudge",
    "WarmStartPolicy",
]
