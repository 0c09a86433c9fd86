"""What is measured after each round."""

from pydantic import Field

from pipeline.config.base import Config
from pipeline.config.judges import Judge


class EvaluationConfig(Config):
    """Held-out evaluation after each round, and of the initial policy (round 0).

    One answer for each prompt, at temperature 1 and from the whole distribution: only then is the mean log-ratio an
    estimate of the divergence.
    """

    prompts: int = Field(256, ge=1, le=1_000_000, description="held-out prompts, never sampled in training")
    judges: tuple[Judge, ...] = Field((), description="further judges, which training never sees")
    judge_probe: int | None = Field(
        None,
        ge=2,
        le=100_000,
        description="answers of round 0 that judges which may drift, as language models, judge again in each round",
    )
    kl_limit: float | None = Field(
        None, gt=0, description="raise an alarm above this KL to the initial policy, in nats per sequence"
    )
