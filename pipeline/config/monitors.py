"""Who sees a run from outside: where its metrics go besides the store, and who is told what becomes of it."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Config

Block = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,100}/[a-z0-9-]{1,100}$")]
Event = Literal["finished", "failed", "alarm", "labels"]


class TrackingConfig(Config):
    """Live curves. The store has every metric either way; these are copies for people who watch."""

    tensorboard: str | None = Field(
        None, description="a local directory for TensorBoard's event files; a relative one begins where rondo is called"
    )
    wandb_project: str | None = Field(
        None,
        pattern=r"^[^\s/\\#?%:]{1,128}$",
        examples=["reviews"],
        description="project of Weights & Biases; account and mode come from its own variables, such as WANDB_MODE",
    )


class NotificationsConfig(Config):
    """Messages through Prefect's blocks, which hold the addresses and the secrets: a recipe only names them."""

    blocks: list[Block] = Field(
        [], max_length=20, description='blocks of the Prefect server that can notify, such as "slack-webhook/team"'
    )
    events: list[Event] = Field(
        ["finished", "failed", "alarm", "labels"],
        description="of what: the rounds are done, the run has failed, a round has raised an alarm, or waits for "
        "people's labels",
    )
