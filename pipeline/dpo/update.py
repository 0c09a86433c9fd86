"""The DPO update of a round: preferences in, new weights in place, a row of metrics for each optimizer step.

Preferences may come shard by shard: the steps that are known by then can be taken before the next ones are there.
What an update has done so far can be saved at any step and loaded into a new one. That then ends with the same
weights, to the bit on CPU. No random numbers are drawn on the way: the order of the preferences follows from the seed,
and dropout is off.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pipeline.config import UpdateConfig
from pipeline.dpo.batches import PlannedStep, StepPlan
from pipeline.dpo.checks import (
    check_alone,
    check_any,
    check_gradient,
    check_inputs,
    check_weights,
    halved_budget,
)
from pipeline.dpo.first_loss import check_first_loss
from pipeline.dpo.gradients import StepOutcome, accumulate_gradient
from pipeline.dpo.measured_sample import displacement_sample, spread
from pipeline.dpo.optimizer import build_optimizer, learning_rate_factor
from pipeline.dpo.preference_losses import preference_losses
from pipeline.dpo.preference_pool import PreferencePool
from pipeline.dpo.state import hashed_settings, load_optimizer, load_progress, load_state, save_optimizer, save_state
from pipeline.dpo.types import PreferenceGroup, RoundFacts, StepMetrics, UpdateResult
from pipeline.model.check import check_model
from pipeline.model.checkpointing import evaluate_plainly, recompute_layers
from pipeline.model.distributed import full_tensor, world_of
from pipeline.model.logprobs import check_context, token_logps
from pipeline.model.policy import round_weights
from pipeline.model.router_loss import check_router
from pipeline.packing.attention import shared_prefix_attention
from pipeline.records import content_id

__all__ = ["PreferenceGroup", "RoundFacts", "StepMetrics", "Update", "UpdateResult", "run_update"]

REFERENCE = "reference_logps.jsonl"
"""Of a saved update: the reference's log-probabilities, a line for each preference."""

FIRST_ROUND = RoundFacts()

OnStep = Callable[[StepMetrics], None]


@dataclass
class _Progress:
    """What an update has done so far, apart from weights and the optimizer's state."""

    rows: list[StepMetrics]
    token_budget: int
    first_loss: float = 0.0
    expected: float | None = None
    drift: float = 0.0


class Update:
    """An update of ``model``, in place, on ``groups`` and those that are added later.

    The same inputs, seed and thread count give the same weights, whenever the preferences of a shard are added.

    Of a model that is spread over several ranks (`distributed.shard`), each rank makes an update of the same inputs and
    calls the same methods in the same order. All of them get the same results; only the first one writes.

    Args:
        config: the recipe's.
        facts: what the round knows beside it.
        share: of the round's prompts that is done with ``groups``; 1 if no more will come.
        saved_as: the precision that weights are rounded to after the last step, and before they are measured: what is
            measured is what will be saved.
        say: takes a sentence for people, such as that memory ran out and the packs are smaller from here on.

    Raises:
        ConfigError, DataError, PromptTooLongError, UnsupportedModelError: model, preferences and configuration do not
            go together; nothing has been done.
    """

    def __init__(
        self,
        model: Any,
        groups: Sequence[PreferenceGroup],
        config: UpdateConfig,
        *,
        seed: int,
        facts: RoundFacts = FIRST_ROUND,
        share: float = 1.0,
        saved_as: torch.dtype = torch.float32,
        say: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        self._terms = check_inputs(groups, config)
        with world_of(model).raise_on_all():
            check_weights(model)
        check_model(model)
        if config.router_loss_weight:
            check_router(model)
        evaluate_plainly(model)  # as dropout would make the policy differ from the reference
        if config.gradient_checkpointing:
            recompute_layers(model)
        self._model, self._config, self._facts, self._seed, self._say = model, config, facts, seed, say
        self.saved_as = saved_as
        self._groups = PreferencePool()
        self._optimizer = build_optimizer(model, config, host_moments=facts.host_moments)
        self._plan = StepPlan(config, seed=seed, warmup_steps=facts.warmup_steps(config), most=facts.most_preferences)
        self._done = _Progress([], config.token_budget)
        self.add(groups, share)

    @property
    def expected_steps(self) -> int:
        """Says how many steps there are; while preferences are missing, an estimate."""
        return self._plan.expected_steps

    @property
    def ended(self) -> bool:
        """Says whether the step that was taken last is known to be the last one of the plan."""
        return self._plan.closed and len(self._done.rows) >= self._plan.expected_steps

    def add(self, groups: Sequence[PreferenceGroup], share: float) -> None:
        """Adds the preferences of the next shard, with which this share of the round's prompts is done.

        Raises:
            ConfigError, DataError, PromptTooLongError: they do not go with model and configuration; none was added.
            NoRoomError: the disk for temporary files is full.
        """
        check_inputs(groups, self._config)
        check_context(self._model, groups)
        self._groups.extend(groups)
        self._plan.add(len(groups), share)
        # If memory ran out the packs are smaller, and hold the largest group of those that were there.
        self._done.token_budget = max([self._done.token_budget, *(group.packed_tokens for group in groups)])

    def carry_optimizer(self, directory: Path) -> None:
        """Begins with the optimizer's state that an earlier update saved, in place of an empty one."""
        load_optimizer(self._model, self._optimizer, directory)

    def save_optimizer(self, directory: Path) -> None:
        """Writes the optimizer's state for a later round."""
        save_optimizer(self._model, self._optimizer, directory)

    def save(self, directory: Path) -> None:
        """Writes what has been done so far: weights, the optimizer's state, and the rows of the steps."""
        save_state(self._model, self._optimizer, {**asdict(self._done), "identity": self._identity()}, directory)
        if world_of(self._model).is_main:
            self._groups.save_reference(directory / REFERENCE)

    def load(self, directory: Path) -> list[StepMetrics]:
        """Goes on from where another one of the same inputs was saved; returns the rows of the steps that it had taken.

        If preferences come shard by shard, those that the other one had when it was saved must have been added.

        The reference's log-probabilities are those that it had: if they were computed anew, on a GPU, they might
        differ in the last bits.

        Raises:
            DataError: it was saved by an update of other preferences, configuration or seed, or is damaged.
        """
        found = load_progress(directory, self._identity())
        groups = self._groups.with_reference(directory / REFERENCE)
        load_state(self._model, self._optimizer, directory)
        del found["identity"]
        self._done = _Progress(**{**found, "rows": [StepMetrics(**row) for row in found["rows"]]})
        self._groups = groups
        return list(self._done.rows)

    def advance(self, on_step: OnStep | None = None) -> None:
        """Takes the steps that are known and missing, up to a limit of the settings.

        Raises:
            FirstLossError: the first loss is not the one that theory gives; no weight has changed.
            NonFiniteError: a loss or a gradient is not finite; the step at fault has not been taken.
            OutOfMemoryError: a single preference does not fit into the device's memory; of several ranks, a pack.
        """
        while not self.stopped and (planned := self._plan.step(len(self._done.rows))):
            row = self._step(len(self._done.rows), planned)
            self._done.rows.append(row)
            if on_step is not None:
                on_step(row)

    def run(self, on_step: OnStep | None = None) -> UpdateResult:
        """Takes all steps that are missing: no more preferences will come.

        Raises:
            DataError: there is no preference at all.
            Others as for `advance`.
        """
        check_any(self._groups)
        self._plan.close()
        self.advance(on_step)
        self._optimizer.zero_grad(set_to_none=True)  # as large as the weights, and the model stays
        if self.saved_as != torch.float32:
            round_weights(self._model, self.saved_as)
        done = self._done
        sample = spread(self._groups, displacement_sample(len(self._groups), self._config.epochs))
        final, tokens = token_logps(self._model, sample, done.token_budget, precision=self._config.precision)
        reference = [group.reference_logps for group in sample]  # which is the start's, if these are one
        before = self._losses(sample, reference) if self._facts.reference_is_start else None
        return UpdateResult(
            first_loss=done.first_loss,
            first_loss_expected=done.expected,
            reference_drift=done.drift,
            steps=done.rows,
            stopped=self.stopped,
            token_budget=done.token_budget,
            sample=sample,
            final_logps=final,
            final_tokens=tokens if self._config.token_logprobs else None,
            losses_before=before,
            losses_after=self._losses(sample, final),
            **_displacement(sample, final),
        )

    def _losses(self, groups: Sequence[PreferenceGroup], logps: Sequence[Sequence[float]]) -> list[float]:
        return preference_losses(groups, logps, self._terms, self._config)

    @property
    def stopped(self) -> str | None:
        """Says why the steps end before the plan does, if the last one met a limit; None if not."""
        if not self._done.rows:
            return None
        row, config = self._done.rows[-1], self._config
        if config.stop_at_kl is not None and row.kl > config.stop_at_kl:
            return f"KL {row.kl:.3g} nats at step {row.step}, above {config.stop_at_kl:g}"
        if config.stop_at_margin is not None and row.reward_margin > config.stop_at_margin:
            return f"reward margin {row.reward_margin:.3g} at step {row.step}, above {config.stop_at_margin:g}"
        return None

    def _step(self, step: int, planned: PlannedStep) -> StepMetrics:
        started, config = time.perf_counter(), self._config
        batch = [self._groups[index] for index in planned.members]
        outcome, tokens = self._gradient(batch, step)
        if step == 0:
            done = self._done
            done.first_loss, done.drift = outcome.objective.mean().item(), outcome.drift.max().item()
            done.expected = check_first_loss(outcome, batch, self._terms, config, self._facts)
        factor = learning_rate_factor(config, self._facts, step=step, done=planned.done)
        learning_rate = config.learning_rate * factor * planned.weight
        grad_norm = _take_step(self._model, self._optimizer, learning_rate, config.max_grad_norm, batch, step)
        return StepMetrics(
            step=step,
            epoch=planned.epoch,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens=tokens,
            seconds=time.perf_counter() - started,
            router_loss=outcome.router.mean().item() if config.router_loss_weight else None,
            **_means(outcome, config.beta),
        )

    def _identity(self) -> str:
        """Hashes what decides the steps, so that a saved state is never continued with other inputs.

        The reference's log-probabilities are part of the state, and not of this.
        """
        return content_id([self._groups.digest, hashed_settings(self._config, self._facts), self._seed])

    def _gradient(self, batch: Sequence[PreferenceGroup], step: int) -> tuple[StepOutcome, int]:
        """Computes the step's gradient; if the device's memory does not hold a pack, with packs of half the size."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            config = self._config.model_copy(update={"token_budget": self._done.token_budget})
            try:
                with shared_prefix_attention(self._model):  # around the backward pass too, which may recompute layers
                    return accumulate_gradient(self._model, batch, self._terms, config, step)
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
                check_alone(world_of(self._model).size, self._done.token_budget, reason)
            # Outside of the handler, whose traceback would keep the activations alive.
            self._done.token_budget = halved_budget(self._groups, self._done.token_budget, reason)
            self._say(
                f"out of memory at step {step}: going on with packs of {self._done.token_budget} tokens; the result "
                "changes in the last digits only. Set update.token_budget to that to avoid the waste"
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def run_update(
    model: Any,
    groups: Sequence[PreferenceGroup],
    config: UpdateConfig,
    *,
    seed: int,
    facts: RoundFacts = FIRST_ROUND,
    on_step: OnStep | None = None,
) -> UpdateResult:
    """Runs a whole update, from its first step to its last; see `Update`."""
    return Update(model, groups, config, seed=seed, facts=facts).run(on_step)


def _take_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    max_norm: float,
    batch: Sequence[PreferenceGroup],
    step: int,
) -> float:
    """Clips the gradient, lets the optimizer step, and returns the norm before clipping."""
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm([weight.grad for weight in weights]))
    check_gradient(norm, model, batch, step)
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return float(norm)


def _means(outcome: StepOutcome, beta: float) -> dict[str, float]:
    margin = outcome.chosen_ratio - outcome.rejected_ratio
    chosen, rejected = outcome.chosen_ratio.mean().item(), outcome.rejected_ratio.mean().item()
    return {
        "loss": outcome.loss.mean().item(),
        "reward_chosen": beta * chosen,
        "reward_rejected": beta * rejected,
        "reward_margin": beta * margin.mean().item(),
        "accuracy": (margin > 0).double().mean().item(),
        "logp_chosen": outcome.chosen.mean().item(),
        "logp_rejected": outcome.rejected.mean().item(),
        "logp_chosen_change": chosen,
        "logp_rejected_change": rejected,
        "kl": outcome.kl.mean().item(),
    }


def _displacement(groups: Sequence[PreferenceGroup], final: list[list[float]]) -> dict[str, float]:
    pairs = list(zip(groups, final, strict=True))
    chosen = [logps[0] - group.reference_logps[0] for group, logps in pairs]
    worst = [group.places.index(max(group.places)) for group in groups]
    rejected = [logps[k] - group.reference_logps[k] for (group, logps), k in zip(pairs, worst, strict=True)]
    return {
        "chosen_fell_share": fmean(change < 0 for change in chosen),
        "chosen_change": fmean(chosen),
        "rejected_change": fmean(rejected),
    }
