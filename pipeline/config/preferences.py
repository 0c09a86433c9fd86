"""How judgments become preferences."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Later

RANKING_RULES = ("full_ranking", "top_m")


class ReplayConfig(Config):
    """Preferences of earlier rounds, trained on again.

    The reference of a round's update is one policy for all its preferences. ``current`` scores replayed completions
    under it, so that all of them are held back by the same policy. That is the policy that the update starts from if
    ``update.reference`` is ``previous`` and ``staleness`` is 0, and the first loss then is the one that theory gives.
    With staleness 1 it is the policy before, which sampled the round's own completions; else round 0's, or the average.
    With ``original`` each keeps the policy that sampled it: what an earlier update has already learned of a pair then
    counts, and its pull is towards that earlier policy.
    """

    share: float = Field(0.0, ge=0, le=0.9, description="most of a round's preferences that come from earlier rounds")
    max_age: int = Field(3, ge=1, le=1000, description="how many rounds back they may come from")
    reference: Literal["current", "original"] = Field(
        "current",
        description="their reference: that of this round's update, as update.reference and staleness have it, or "
        "the policy that sampled them",
    )


class PreferencesConfig(Config):
    """How judgments become pairs or rankings; the rules are described at ``pipeline.preferences.build_preferences``."""

    rule: Literal[
        "best_vs_worst", "best_vs_random", "best_vs_each", "all_pairs", "correct_vs_incorrect", "full_ranking", "top_m"
    ] = Field("best_vs_worst", description="which completions of a prompt are set against each other")
    top: int | None = Field(None, ge=1, le=1024, description="places that top_m knows; the others tie behind them")
    ties: Literal["drop", "keep"] = Field(
        "drop", description="of a ranking: leave out what ties with a better one, or let it share that one's place"
    )
    max_pairs: int | None = Field(
        None, ge=1, le=100_000, description="most preferences of a prompt, drawn by the seed; all if empty"
    )
    min_margin: float = Field(0.0, ge=0, description="least difference in score; what is not above it is a tie")
    min_probability: float | None = Field(
        None, ge=0.5, lt=1, description="least probability that a pair's order is right; needs a judge with uncertainty"
    )
    length_penalty: float = Field(
        0.0, ge=0, description="taken off a score for each token before completions are compared, in units of the score"
    )
    drop_truncated: bool = Field(False, description="leave out completions that were cut at max_tokens")
    soft_labels: bool = Field(
        False,
        description="weigh each pair by the probability that its order is right; needs a judge with uncertainty",
    )
    replay: ReplayConfig = Field(ReplayConfig(), description="preferences of earlier rounds, trained on again")
    alarm_below: Annotated[float, Later(0.1)] = Field(
        0.1, ge=0, le=1, description="raise an alarm if a smaller share of a round's prompts gives a preference"
    )
    on_none: Annotated[Literal["go_on", "stop"], Later("go_on")] = Field(
        "go_on",
        description="what the run does after a round in which no prompt gave a preference, and which has no update",
    )

    @property
    def ranks(self) -> bool:
        """Says whether the rule makes rankings; else it makes pairs."""
        return self.rule in RANKING_RULES

    @property
    def needs_uncertainty(self) -> bool:
        """Says whether the judge has to say how sure it is."""
        return self.soft_labels or self.min_probability is not None

    @model_validator(mode="after")
    def _options_fit_the_rule(self) -> "PreferencesConfig":
        if (self.top is None) == (self.rule == "top_m"):
            raise ValueError(
                f"rule '{self.rule}' and top {self.top}: rule top_m needs top, the number of places that are known, "
                "and no other rule takes it"
            )
        if self.ties == "keep" and not self.ranks:
            raise ValueError(f"ties 'keep' is for rankings, and rule '{self.rule}' makes pairs: set it to drop")
        if self.needs_uncertainty and self.ranks:
            raise ValueError(
                f"soft_labels and min_probability are for pairs, and rule '{self.rule}' makes rankings: choose another "
                "rule, or turn them off"
            )
        if self.length_penalty and self.rule == "correct_vs_incorrect":
            raise ValueError("length_penalty does not go with rule 'correct_vs_incorrect': a verdict has no margin")
        return self
