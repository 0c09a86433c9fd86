"""How judgments become preferences."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Config


class PreferencesConfig(Config):
    """How judgments become pairs or rankings."""

    rule: Literal["best_vs_worst", "best_vs_random", "all_pairs", "full_ranking"] = Field(
        "best_vs_worst", description="which candidates of a prompt are set against each other"
    )
    min_margin: float = Field(0.0, ge=0, description="least difference in score; what is not above it is a tie")
    drop_truncated: bool = Field(False, description="leave out candidates that were cut at max_tokens")
    soft_labels: bool = Field(
        False,
        description="weigh each pair by the probability that its order is right; needs a judge with uncertainty",
    )
