"""Where a run's metrics go besides the store."""

from pydantic import Field

from pipeline.config.base import Config


class TrackingConfig(Config):
    """Live curves. The store has every figure either way; these are copies for people who watch."""

    tensorboard: str | None = Field(
        None, description="a local directory for TensorBoard's event files; a relative one begins where rondo is called"
    )
    wandb_project: str | None = Field(
        None,
        pattern=r"^[^\s/\\#?%:]{1,128}$",
        examples=["reviews"],
        description="project of Weights & Biases; account and mode come from its own variables, such as WANDB_MODE",
    )
