"""The DPO update of a recipe."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_serializer, field_validator, model_validator

from pipeline.config.base import Config, Later, among
from pipeline.config.objectives import OBJECTIVES, objectives_with


class LoraConfig(Config):
    """A low-rank adapter, arXiv:2106.09685, in place of all weights: the checkpoint of a round is the adapter."""

    rank: int = Field(16, ge=1, le=4096, description="rank of the change of each weight")
    alpha: int = Field(32, ge=1, le=100_000, description="the change is scaled by alpha / rank")
    rank_stabilised: bool = Field(False, description="scale by alpha / sqrt(rank) instead, arXiv:2312.03732")
    target_modules: tuple[str, ...] = Field(
        (),
        description="names of the modules to adapt; all linear layers but the output head if empty, and those of "
        "attention alone in a mixture of experts",
    )


# What a form offers: schedulers check parameters against it, in the short form that a recipe has.
_OBJECTIVE_FORM = {
    "anyOf": [
        {"type": "string", "enum": list(OBJECTIVES)},
        {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000}},
    ]
}


LEARNING_RATE = 1e-6
"""Safe for all weights of a large model; small ones bear ten to thirty times as much (docs/smollm2.md has a sweep)."""
ADAPTER_LEARNING_RATE = 2e-4
"""An adapter starts at nothing and has few weights: at 135M parameters less than 1e-4 moved next to nothing."""


def _learning_rate(fields: Mapping[str, Any]) -> float:
    """Gives what fits a pretrained model; ``fields`` are those that stand before this one."""
    return LEARNING_RATE if fields.get("lora") is None else ADAPTER_LEARNING_RATE


class UpdateConfig(Config):
    """The DPO update of a round.

    ``objective`` is a name, or a mapping of names to weights for a weighted sum; it is kept as a mapping, and written
    as a name where there is one of weight 1. The sources of the formulas are in ``pipeline/dpo/losses.py``.

    ``exploration_weight`` is that of XPO's optimism, arXiv:2405.21046, which is meant as a mean over answers that were
    sampled from the reference. It is taken over the candidates that are in the preference: where a rule picked a pair
    out of more than two by their scores, the mean is biased towards the picked ones. It is unbiased with two candidates
    for each prompt, and with rankings of all of them.
    """

    objective: Annotated[Mapping[str, Annotated[float, Field(gt=0, le=1000)]], WithJsonSchema(_OBJECTIVE_FORM)] = Field(
        default_factory=lambda: {"sigmoid": 1.0},
        min_length=1,
        description="loss of a pair or of a ranking: a name, or a mapping of names to weights",
    )
    beta: float = Field(0.1, gt=0, le=100, description="strength of the pull towards the reference")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a pair's order is wrong")
    target_margin: float = Field(0.5, ge=0, le=100, description="margin of simpo, in its rewards' unit")
    dpop_penalty: float = Field(50.0, ge=0, le=1e6, description="factor of dpop's penalty on a chosen one that falls")
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"] = Field(
        "reverse_kl", description="divergence that the rewards are derived from"
    )
    divergence_alpha: float = Field(
        0.5, gt=0, lt=1, description="of the divergence alpha, between reverse KL (0) and forward KL (1)"
    )
    wpo: bool = Field(False, description="weigh each pair by its probability under the policy (WPO)")
    importance: Annotated[Literal["none", "clipped"], Later("none")] = Field(
        "none",
        description="clipped: weigh each preference by how much likelier its completions are under the policy than "
        "under the one that sampled them, up to importance_bound",
    )
    importance_bound: Annotated[float, Later(2.0)] = Field(
        2.0, ge=1, le=1000, description="most that a preference weighs"
    )
    nll_weight: float = Field(
        0.0, ge=0, le=100, description="weight of the chosen completion's negative log-likelihood"
    )
    exploration_weight: float = Field(0.0, ge=0, le=100, description="weight of the exploration term (XPO)")
    router_loss_weight: Annotated[float, Later(0.0)] = Field(
        0.0, ge=0, le=100, description="weight of the balancing loss of a mixture of experts"
    )
    lora: LoraConfig | None = Field(None, description="train a low-rank adapter; all weights if empty")
    learning_rate: float = Field(
        default_factory=_learning_rate,
        gt=0,
        le=1,
        description="peak learning rate of AdamW; the default fits pretrained models, and is "
        f"{ADAPTER_LEARNING_RATE:g} for an adapter",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate over the steps")
    schedule_over: Literal["round", "run"] = Field(
        "round", description="whether the schedule and its warm-up begin anew in each round, or span all of them"
    )
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="steps of linear warm-up at the schedule's start")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="adamw is torch's fused one; the others are those of bitsandbytes, on a GPU"
    )
    optimizer_state: Literal["reset", "carried"] = Field(
        "reset", description="whether a round begins with empty moments, or with those of the round before"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's mean of gradients")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's mean of squared gradients")
    adam_epsilon: float = Field(
        1e-8, gt=0, le=1, description="added to the root of the latter; gradients far below it move a weight little"
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="gradients are clipped to this norm")
    epochs: int = Field(1, ge=1, le=100, description="passes over the round's preferences")
    batch_size: int = Field(
        16,
        ge=1,
        le=1_000_000,
        description="preferences per optimizer step; one of fewer moves the weights by its share of a whole one",
    )
    batch_order: Literal["shuffled", "shards"] = Field(
        "shuffled",
        description="of the first epoch: a permutation of all preferences, or shard after shard, each permuted; the "
        "latter lets mode streaming take steps while later shards are still being sampled",
    )
    token_budget: int = Field(4096, ge=16, le=10_000_000, description="most tokens of one forward pass")
    reference: Literal["previous", "initial", "ema"] = Field(
        "previous",
        description="the policy that sampled, which is that of the round before, or with staleness 1 of the one before "
        "that; the policy of round 0; or a moving average of all since it is kept",
    )
    ema_decay: float = Field(0.9, gt=0, lt=1, description="share of the moving average that a round keeps")
    stop_at_kl: float | None = Field(
        None, gt=0, description="end a round's steps after one above this KL to the reference, in nats per sequence"
    )
    stop_at_margin: float | None = Field(
        None, gt=0, description="end a round's steps after one whose mean reward margin is above this"
    )
    checkpoint_steps: int = Field(
        0, ge=0, le=1_000_000, description="steps between checkpoints within a round, to resume from; none if 0"
    )
    reference_logprobs: Literal["sampler", "trainer", "auto"] = Field(
        "auto",
        description="whose log-probabilities are the reference's; those of held-out answers under the policy that gave "
        "them are the sampler's only if they differ by less than reference_tolerance, and never with trainer",
    )
    reference_tolerance: float = Field(
        1e-2,
        gt=0,
        le=100,
        description="auto takes the sampler's if they differ from the trainer's by less, in nats per sequence",
    )
    # No weight depends on it: off is another recipe, and on is what a run of version 0.1.0 goes on with.
    token_logprobs: Annotated[bool, Later(True)] = Field(
        True,
        description="keep log-probabilities of single tokens under the policies that a round is measured by: of "
        "held-out answers, and of the preferences that are measured after the update; 4 to 12 bytes a token",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the forward pass, and of vLLM on a GPU; master weights are float32. If this is left out and "
        "devices.trainer is a GPU, it is bfloat16",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    compile: bool = Field(
        False, description="compile the policy's layers once per worker; takes half a minute and a C++ compiler"
    )

    def takes_samplers(self, drift: float) -> bool:
        """Says whether the reference's log-probabilities are the sampler's, at this difference to the trainer's.

        Args:
            drift: largest difference on the same weights, in nats per sequence.
        """
        return self.reference_logprobs == "sampler" or self.measures_by_samplers(drift)

    def measures_by_samplers(self, drift: float) -> bool:
        """Says whether a round is measured by the sampler's log-probabilities, at this difference to the trainer's.

        Figures such as the KL compare rounds: however the reference is chosen, the two must agree.
        """
        return self.reference_logprobs != "trainer" and drift <= self.reference_tolerance

    @field_validator("objective", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        weights = {value: 1.0} if isinstance(value, str) else value
        for name in weights if isinstance(weights, Mapping) else ():
            if name not in OBJECTIVES:
                raise ValueError(
                    f"update.objective: there is no objective '{name}': choose among {', '.join(OBJECTIVES)}"
                )
        return weights

    @field_serializer("objective")
    def _shortest(self, weights: Mapping[str, float]) -> str | dict[str, float]:
        return next(iter(weights)) if list(weights.values()) == [1.0] else dict(weights)

    @model_validator(mode="after")
    def _constants_fit(self) -> "UpdateConfig":
        smoothed = (name for name, objective in OBJECTIVES.items() if objective.needs_smoothing)
        if self.label_smoothing == 0 and (found := among(self.objective, smoothed)):
            raise ValueError(
                f"update.label_smoothing 0 makes update.objective '{found}' infinite: choose it above 0, such as 0.001"
            )
        for constant, field in UpdateConfig.model_fields.items():
            objectives = objectives_with(constant)
            if objectives and getattr(self, constant) != field.default and not among(self.objective, objectives):
                raise ValueError(
                    f"update.{constant} is {getattr(self, constant)} and no part of update.objective has it: it goes "
                    f"with {', '.join(objectives)}; leave it out"
                )
        if self.divergence_alpha != 0.5 and self.divergence != "alpha":
            raise ValueError(
                f"update.divergence_alpha is {self.divergence_alpha} and update.divergence '{self.divergence}': it "
                "goes with alpha; leave it out"
            )
        if self.importance_bound != 2.0 and self.importance == "none":
            raise ValueError(
                f"update.importance_bound is {self.importance_bound} and update.importance 'none': it goes with "
                "clipped; leave it out"
            )
        absolute = (name for name, objective in OBJECTIVES.items() if not objective.margin)
        if self.divergence != "reverse_kl" and (found := among(self.objective, absolute)):
            raise ValueError(
                f"update.divergence '{self.divergence}' does not go with update.objective '{found}', which is defined "
                "for reverse_kl alone: change one of them"
            )
        if self.reference == "ema" and self.lora is not None:
            raise ValueError(
                "update.reference 'ema' averages whole weights and update.lora trains an adapter: take another"
            )
        if self.reference != "previous" and self.reference_logprobs == "sampler":
            raise ValueError(
                "update.reference_logprobs 'sampler' are those of the policy that sampled, and update.reference is "
                f"'{self.reference}': leave the former at auto"
            )
        return self
