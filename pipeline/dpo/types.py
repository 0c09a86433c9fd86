"""What goes into an update and what comes out of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import UpdateConfig
from pipeline.errors import DataError
from pipeline.packing.packing import TokenGroup


@dataclass(frozen=True, kw_only=True)
class PreferenceGroup(TokenGroup):
    """A preference over the candidates of a prompt, best first: two of them for a pair, more for a ranking.

    ``reference_logps``: log-probability of each candidate under the reference, in nats, summed over its
    tokens. ``ranks``: rank of each candidate if some are tied, never falling; 0, 1, 2, ... if None.
    ``soft_label``: probability that the order of a pair is right. For the record alone are ``candidates``, their
    indices among the K of the prompt, and ``origin_round``, the round of a preference that is trained on again.
    """

    reference_logps: Sequence[float]
    ranks: Sequence[int] | None = None
    soft_label: float | None = None
    candidates: Sequence[int] | None = None
    origin_round: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        candidates = len(self.candidate_token_ids)
        if candidates < 2:
            raise DataError(f"prompt {self.prompt_id} has {candidates} candidates: a preference needs at least 2")
        if len(self.reference_logps) != candidates or not all(map(math.isfinite, self.reference_logps)):
            raise DataError(
                f"prompt {self.prompt_id} has {candidates} candidates and reference log-probabilities "
                f"{list(self.reference_logps)}: give one finite number for each"
            )
        places = self.places
        if len(places) != candidates or places[0] < 0 or list(places) != sorted(places) or places[0] == places[-1]:
            raise DataError(
                f"prompt {self.prompt_id} has ranks {list(places)} for {candidates} candidates: give one for "
                "each, best first, not all equal"
            )
        if self.soft_label is not None and not 0 <= self.soft_label <= 1:
            raise DataError(f"prompt {self.prompt_id} has soft label {self.soft_label}: give a probability from 0 to 1")

    @property
    def places(self) -> Sequence[int]:
        """Returns the rank of each candidate, lower is better."""
        return range(len(self.candidate_token_ids)) if self.ranks is None else self.ranks


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """What an update has to know beside the recipe, as its round has it.

    ``round`` of ``rounds``, from 1: where a schedule over the whole run stands. ``reference_is_start``: the reference
    log-probabilities are those of the weights that the update starts from, so that the first loss is known beforehand
    and is checked. ``most_preferences``: as many as the round could have given, see `StepPlan`; None if nobody knows.
    ``noise``: standard deviation of a token's log-probability between the engines, in nats; 0 if it was not measured.
    ``host_moments``: AdamW's moments lie in main memory, which changes no weight.
    """

    round: int = 1
    rounds: int = 1
    reference_is_start: bool = True
    most_preferences: int | None = None
    noise: float = 0.0
    host_moments: bool = False

    def schedule_part(self, config: UpdateConfig) -> tuple[float, float]:
        """Returns the share of the learning rate's schedule before this update, and that at its end."""
        if config.schedule_over == "round":
            return 0.0, 1.0
        return (self.round - 1) / self.rounds, self.round / self.rounds

    def warmup_steps(self, config: UpdateConfig) -> int:
        """Counts the steps of warm-up in this update: of updates that share a schedule, the first one alone has any."""
        return config.warmup_steps if self.schedule_part(config)[0] == 0 else 0


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step: means over its preferences, before the step is taken.

    Rewards are ``beta * (logp - reference logp)`` in nats; *chosen* is the best candidate, *rejected* the
    worst. Accuracy is the share of preferences with the higher reward for the chosen one. A change is against
    the reference, and ``kl`` half the mean square of it over all candidates, an estimate of the divergence from the
    reference. Log-probabilities are in nats a sequence, ``grad_norm`` is that before clipping, ``tokens`` are those
    processed. ``router_loss`` is the balancing loss of a mixture of experts, before its weight; None if it has none.
    """

    step: int
    epoch: int
    loss: float
    reward_chosen: float
    reward_rejected: float
    reward_margin: float
    accuracy: float
    logp_chosen: float
    logp_rejected: float
    logp_chosen_change: float
    logp_rejected_change: float
    kl: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    router_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """An update as a whole.

    ``first_loss`` is the objective on the first step without the NLL term. ``first_loss_expected`` is what
    theory gives for it; None if the reference is not the start, or theory gives no number.
    ``reference_drift`` is the largest difference, in nats a sequence, between the reference and the policy on
    the first step. The last three compare the policy after the last step with the reference: share of
    preferences whose chosen candidate became less likely, and mean change, in nats a sequence.
    They are of ``sample``: some of the preferences (`displacement_sample`), evenly spread. ``final_logps`` holds
    the log-probability of each of its candidates after the last step. ``losses_before`` and ``losses_after`` are
    the objective of each of them, without the terms that are added to it; before only if the reference is the start.
    ``final_tokens`` has the log-probability of each of their tokens, if the recipe asks for it. ``stopped`` says why
    the steps ended before the plan did, ``token_budget`` is that of the last step, less than asked for if memory ran
    out.
    """

    first_loss: float
    first_loss_expected: float | None
    reference_drift: float
    steps: list[StepMetrics]
    stopped: str | None
    token_budget: int
    sample: list[PreferenceGroup]
    final_logps: list[list[float]]
    final_tokens: list[list[list[float]]] | None
    losses_before: list[float] | None
    losses_after: list[float]
    chosen_fell_share: float
    chosen_change: float
    rejected_change: float
