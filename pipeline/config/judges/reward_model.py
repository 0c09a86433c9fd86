"""A sequence classifier as a judge."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config
from pipeline.config.judges.base import JudgeConfig


class Head(Config):
    """One output of a classifier that has several."""

    name: str = Field(min_length=1, max_length=100, description="name among the components; the model's label for it")
    output: int | None = Field(None, ge=0, description="its number, from 0; found by the model's label where empty")
    weight: float = Field(1.0, ge=-1000, le=1000, description="weight in the score")


class RewardModelJudge(JudgeConfig):
    """A sequence classifier, applied to prompt and answer: its one output, or a weighted sum of named ones."""

    kind: Literal["reward_model"]
    path: str = Field(min_length=1, description="local directory, or id on the model hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    heads: tuple[Head, ...] = Field((), description="the outputs that count, where the classifier has several")
    without_template: bool = Field(
        False, description="join prompt and answer as they are, in place of the classifier's chat template"
    )
    gives_std: bool = Field(
        False, description="it was trained to state standard deviations (train-judge --objective uncertainty)"
    )
    batch_size: int = Field(16, ge=1, le=4096, description="sequences per forward pass")

    OPERATIONAL = JudgeConfig.OPERATIONAL | {"batch_size", "gives_std"}

    @property
    def states_uncertainty(self) -> bool:
        return self.gives_std

    @model_validator(mode="after")
    def _heads_differ(self) -> "RewardModelJudge":
        names = [head.name for head in self.heads]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two heads are named '{twice}': give each a name of its own")
        return self
