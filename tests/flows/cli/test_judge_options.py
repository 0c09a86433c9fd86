"""The options of `rondo train-judge`."""

import inspect

from flows.cli.judges import train_judge_
from pipeline.reward_model.config import RewardTrainingConfig


def test_defaults_are_those_of_the_fit() -> None:
    """The command writes them out, so that its help has them and needs no import of the fit's settings."""
    options = inspect.signature(train_judge_).parameters
    fields = {name: field.default for name, field in RewardTrainingConfig.model_fields.items()}
    assert {name: options[name].default for name in fields} == fields
