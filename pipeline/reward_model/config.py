"""How a reward model is fitted."""

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Config, Device

RewardObjective = Literal[
    "bradley_terry", "scaled_bradley_terry", "regression_then_bradley_terry", "thurstone", "expected_logistic"
]
WITH_DEVIATION: tuple[RewardObjective, ...] = ("thurstone", "expected_logistic")
"""Objectives of two outputs, a mean and the logarithm of a standard deviation."""
OLD_NAMES = {"uncertainty": "thurstone"}
"""What objectives were called in version 0.1.0."""


class RewardTrainingConfig(Config):
    """The fit of a reward model to preferences."""

    objective: RewardObjective = Field("bradley_terry", description="loss; see pipeline/reward_model/losses.py")
    epochs: int = Field(1, ge=1, le=1000, description="passes over the pairs")
    regression_epochs: int = Field(
        2, ge=1, le=1000, description="passes over the ratings before that, for regression_then_bradley_terry"
    )
    learning_rate: float = Field(1e-5, gt=0, le=1, description="peak learning rate of AdamW; falls linearly to zero")
    weight_decay: float = Field(0.0, ge=0, le=10, description="of AdamW, on matrices")
    batch_size: int = Field(32, ge=1, le=65536, description="pairs, or ratings, of a step")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of the prompts that the fit never sees")
    seed: int = Field(0, ge=0, lt=2**31, description="of the new head, of the split and of the order of the pairs")
    device: Device = Field("cpu", description="where it is fitted")
    threads: int = Field(1, ge=1, le=1024, description="on a CPU; a change changes results in the last bits")
    without_template: bool = Field(
        False, description="join prompt and completion as they are, in place of the base's chat template"
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _takes_old_names(cls, value: Any) -> Any:
        return OLD_NAMES.get(value, value) if isinstance(value, str) else value
