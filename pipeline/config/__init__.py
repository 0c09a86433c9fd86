"""The sections of a recipe, one module each; ``pipeline.recipe`` puts them together with the judges.

Nothing is needed to import them but pydantic.
"""

from pipeline.config.devices import ClusterConfig, DevicesConfig, ReplicasConfig, StoreConfig
from pipeline.config.monitors import NotificationsConfig, TrackingConfig
from pipeline.config.objectives import OBJECTIVES
from pipeline.config.policy import PretrainedPolicy, WarmStartPolicy
from pipeline.config.preferences import PreferencesConfig
from pipeline.config.prompts import DatasetPrompts, FilePrompts, GeneratedPrompts, Prompts
from pipeline.config.sampling import SamplingConfig, ThoughtMarks
from pipeline.config.update import LoraConfig, UpdateConfig

__all__ = [
    "OBJECTIVES",
    "ClusterConfig",
    "DatasetPrompts",
    "DevicesConfig",
    "FilePrompts",
    "GeneratedPrompts",
    "LoraConfig",
    "NotificationsConfig",
    "PreferencesConfig",
    "PretrainedPolicy",
    "Prompts",
    "ReplicasConfig",
    "SamplingConfig",
    "StoreConfig",
    "ThoughtMarks",
    "TrackingConfig",
    "UpdateConfig",
    "WarmStartPolicy",
]
