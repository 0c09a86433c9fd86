"""The metrics that a round leaves: a record in the log, and a row of the table that people read."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from flows.registry.gate_result import GateResult, gate_words
from pipeline.usage import Usage
from storage.log.manifest import Entry


class JudgeOrigin(BaseModel):
    """A judge as it was in a round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    config: str = Field(description="hash of its configuration")


class RoundOrigin(BaseModel):
    """What a round was made from, beside its policy and reference. The session that ran it records the software."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(description="hash of the recipe, without what does not change the rounds")
    sampled_by: str | None = Field(description="hash of the weights that sampled; none in round 0")
    prompts: str | None = Field(description="hash of the ids of the prompts that were sampled, in order")
    held_out: str = Field(description="hash of the ids of the held-out prompts, in order")
    judges: list[JudgeOrigin] = Field(description="the training judge first")


class Served(BaseModel):
    """Held-out answers that were sampled as one would serve, which is for reading: lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward: float | None = Field(description="mean score of the judge of the reward; none if no answer has a score")
    reward_se: float | None = None
    judges: dict[str, float] = Field(description="mean score of each other judge")
    length: float
    truncated: float


class RoundSummary(BaseModel):
    """A finished round. Shares are from 0 to 1, lengths in tokens, divergences in nats per sequence.

    What compares with an earlier round, or tells of an update, is empty for round 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    policy: str = Field(description="hash of the weights")
    reference: str | None = Field(None, description="hash of the reference policy's weights")
    judge: str = Field(description="judge of the reward: the training judge, if it scores one completion")
    reward: float = Field(description="mean score of that judge on held-out prompts")
    reward_se: float | None = Field(description="its standard error; none of a single prompt")
    judges: dict[str, float] = Field(description="mean score of each judge that training does not hear")
    served: Served | None = Field(None, description="as one would serve, if the recipe says how; else at temperature 1")
    win_rate_initial: float | None = None
    win_rate_previous: float | None = None
    kl_previous: float | None = None
    kl_previous_se: float | None = None
    kl_initial: float | None = None
    kl_initial_se: float | None = None
    initial_logp_per_token: float | None = Field(None, description="log-probability under round 0, nats per token")
    length: float
    truncated: float
    base_rate: str | None = Field(None, description="how many of the initial policy's answers score; in round 0")
    distinct: float
    entropy_per_token: float = Field(description="nats per token")
    thought_length: float | None = Field(
        None, description="mean length of what completions think before they answer; none if none of them does"
    )
    answer_length: float | None = Field(None, description="mean length of what follows the thought")
    cut_in_thought: float | None = Field(None, description="share of completions cut before their thought had ended")
    cut_in_answer: float | None = Field(None, description="share of completions cut after it")
    sampled_reward: float | None = None
    sampled_length: float | None = None
    sampled_truncated: float | None = Field(None, description="share of the candidates that were cut at max_tokens")
    unjudged: int | None = None
    tied: float | None = Field(None, description="share of pairs of a prompt's completions within the least margin")
    unparsable: float | None = Field(None, description="share of judgments whose reply could not be read")
    flipped: float | None = Field(None, description="share of comparisons whose verdict turned with the order")
    length_correlation: float | None = Field(
        None, description="Spearman's correlation of score and length within prompts, of the completions"
    )
    agreement: dict[str, float] = Field(
        {}, description="share of pairs of held-out completions in the same order as by the judge, by held-out judge"
    )
    gaps: dict[str, float] = Field(
        {}, description="rise of the judge since round 0 less a held-out judge's, each in its own spread of round 0"
    )
    over_optimised: list[str] = []
    judge_drift: dict[str, float] = Field(
        {}, description="mean change of what judges say of the same completions of round 0, by judge"
    )
    drifted: list[str] = []
    judge_usage: dict[str, Usage] = Field(
        {}, description="what language models took that judged in the round, by judge; none in earlier versions"
    )
    preferences: int | None = None
    preference_share: float | None = Field(None, description="share of the prompts that gave a preference")
    no_update: str | None = Field(
        None, description="why the round had no update, and ended with the policy of the round before; empty if it had"
    )
    labels_missing: int | None = Field(None, description="people's labels that the round went on without")
    margin: float | None = None
    length_margin: float | None = Field(None, description="by how much the best completion is longer than the worst")
    replayed: int | None = Field(None, description="preferences of earlier rounds that were trained on beside these")
    replayed_share: float | None = None
    replayed_age: float | None = Field(None, description="their mean age, in rounds")
    dropped: dict[str, int] = {}
    reference_logprobs: str | None = None
    reference_drift: float | None = None
    first_loss: float | None = None
    first_loss_expected: float | None = None
    last_loss: float | None = None
    steps: int | None = None
    stopped: str | None = Field(None, description="why the steps ended before their plan did")
    token_budget: int | None = None
    router_loss_weight: float | None = Field(None, description="weight of the balancing loss of a mixture of experts")
    last_router_loss: float | None = Field(None, description="that loss at the last step, before its weight")
    set_aside: int | None = Field(None, description="prompts given up because the engine died on their shard")
    first_kl: float | None = Field(
        None,
        description="divergence of the policy that the update starts from from the reference, estimated at the first "
        "step: what staleness, or another reference, costs",
    )
    off_policy: float | None = Field(
        None,
        description="of completions that a fork was given: mean over preferences, and their completions, of the "
        "log-probability under the policy that the update starts from less that under the policy that sampled",
    )
    off_policy_se: float | None = Field(None, description="its standard error over prompts; none of a single one")
    last_kl: float | None = Field(None, description="divergence from the reference at the last step, estimated")
    train_tokens: int | None = None
    train_accuracy: float | None = None
    chosen_fell: float | None = Field(None, description="share of pairs whose chosen completion became less likely")
    chosen_measured: int | None = Field(None, description="pairs that this was measured on; none in earlier versions")
    chosen_change: float | None = None
    rejected_change: float | None = None
    handover_drift: float = Field(description="sampler against trainer after the weight sync, nats per token")
    weights_from: str | None = Field(
        None,
        description="where the sampler took the weights from: memory, which is the trainer's, or checkpoint; none in "
        "earlier versions",
    )
    sampled_tokens: int
    seconds: dict[str, float] = Field(
        description="time of each stage, in which its worker was at it; ahead is that in which the next round was "
        "sampled while this one was updated, which is what staleness gains"
    )
    alarms: list[str] = []
    gate: GateResult | None = Field(None, description="how the round came through its gate; none without one")
    origin: RoundOrigin | None = Field(None, description="none in runs that did not record it yet")

    @property
    def tokens_per_second(self) -> float:
        """Returns the throughput of the sampler while it sampled."""
        return self.sampled_tokens / max(self.seconds["sample"], 1e-9)


def summaries(rounds: Sequence[Entry]) -> list[RoundSummary]:
    """Reads the finished rounds of a run from their entries."""
    return [RoundSummary.model_validate(entry.meta) for entry in rounds]


def start_among(rounds: Sequence[RoundSummary], number: int) -> int:
    """Returns the round that a round started from: the newest before it that has not failed its gate, 0 at the last."""
    good = (one.round for one in rounds if one.round < number and (one.gate is None or one.gate.passed))
    return max(good, default=0)


def rows_of(rounds: Sequence[RoundSummary]) -> list[dict[str, str]]:
    """Returns rounds as people read them; what does not apply to a round is a dash.

    The reward is of answers at temperature 1. That of answers as one would serve stands beside it if a round has them,
    and so do lengths of thoughts.
    """
    served = any(summary.served is not None for summary in rounds)
    thinks = any(summary.thought_length is not None for summary in rounds)
    gated = any(summary.gate is not None for summary in rounds)
    return [_row(summary, served=served, thinks=thinks, gated=gated) for summary in rounds]


def _row(summary: RoundSummary, *, served: bool, thinks: bool, gated: bool) -> dict[str, str]:
    found = summary.served
    as_served = "-" if found is None else _reward(found.reward, found.reward_se)
    thoughts = {
        "thought": _tokens(summary.thought_length),
        "answer": _tokens(summary.answer_length),
        "cut in thought": _share(summary.cut_in_thought),
        "cut in answer": _share(summary.cut_in_answer),
    }
    return {
        "round": str(summary.round),
        "reward": _reward(summary.reward, summary.reward_se),
        **({"as served": as_served} if served else {}),
        "win/0": _share(summary.win_rate_initial),
        "win/prev": _share(summary.win_rate_previous),
        "KL/0": _nats(summary.kl_initial, summary.kl_initial_se),
        "KL/prev": _nats(summary.kl_previous, summary.kl_previous_se),
        "length": _tokens(summary.length),
        **(thoughts if thinks else {}),
        "chosen↓": _share(summary.chosen_fell),
        **({"gate": gate_words(summary.gate)} if gated else {}),
    }


def _reward(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}{_error(error, 3)}"


def _tokens(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _nats(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.2f}{_error(error, 2)}"


def _error(error: float | None, digits: int) -> str:
    return "" if error is None else f"±{error:.{digits}f}"
