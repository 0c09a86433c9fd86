"""A round's update in the trainer: begun with the preferences that are there, given more shard by shard, and finished.

Then its policy is in memory alone, where the sampler can have it from, until it is saved.

The reference's log-probabilities are needed before a preference can be trained on. If the sampler's serve, steps are
taken as soon as they are known. If the trainer has to compute them, it does so for each shard as it comes, and the
steps wait for the last one: they would change the weights that it computes with.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flows.workers import preference_groups
from flows.workers.precision import Agreement
from flows.workers.references import PolicyRef, PreferenceShard, Saved, Trained, UpdateInputs
from flows.workers.trainer_model import TrainerModel
from pipeline.dpo.preference_pool import PreferencePool
from pipeline.dpo.types import PreferenceGroup, RoundFacts, StepMetrics, UpdateResult
from pipeline.dpo.update import Update
from pipeline.errors import LostUpdateError
from pipeline.packing.packing import TokenGroup
from pipeline.records import PREFERENCE_LOGPS, STEPS, to_table
from storage.log.manifest import FileRef
from storage.tables import checkpoints

PROBE_SEQUENCES = 8


@dataclass(frozen=True)
class _Ended:
    """An update whose steps are taken: its policy's name until it is saved, and the precision to save it in."""

    name: str
    result: UpdateResult
    saved_as: torch.dtype


class RoundUpdate:
    """One round's DPO update, from the policy that it starts from to its checkpoint."""

    def __init__(self, slot: TrainerModel, inputs: UpdateInputs, round: int, seed: int) -> None:
        self._slot, self._inputs, self._round, self._seed = slot, inputs, round, seed
        config, gate = slot.recipe.update, slot.recipe.gate
        self._config = config if gate is None else gate.retried(config, inputs.failures)
        # How the reference is known, once the first preferences are there, or as it was before an interruption.
        self._metrics = inputs.referenced
        # In float32 what the two are apart by is no noise, and tells other weights from the right ones.
        self._noise = 0.0 if Agreement.of(slot.recipe).exact else inputs.noise
        self._waiting, self._shards = PreferencePool(), list[tuple[int, float]]()
        self._update: Update | None = None
        self._ended: _Ended | None = None
        self._probed: list[TokenGroup] = []
        self._probed_before: list[float] = []
        self._tokens, self._started = 0, time.perf_counter()
        for shard in inputs.shards:
            self._wait_with(self._referenced(self._groups(shard)), shard.share)
        if inputs.replayed:
            self._wait_with(self._replayed(), 1.0)
        if inputs.state:
            self._open()

    def add(self, shard: PreferenceShard) -> None:
        """Adds the next shard's preferences, and takes the steps that are known with them."""
        groups = self._referenced(self._groups(shard))
        if self._update is not None:
            self._update.add(groups, shard.share)
        else:
            self._wait_with(groups, shard.share)
        if self._metrics is not None and self._metrics["reference_logprobs"] == "sampler":
            self._opened().advance(self._on_step)

    def finish(self, name: str) -> Trained:
        """Takes the steps that are left, and writes a probe of the policy, which has this name until it is saved."""
        update = self._opened()
        result = update.run(self._on_step)
        self._ended = _Ended(name, result, update.saved_as)
        if self._config.optimizer_state != "carried":
            self._update = None  # with the moments, which are as large as the weights twice over
        self._slot.set_current_policy(name)
        metrics = {**(self._metrics or {}), **preference_groups.summary(result, self._config)}
        return Trained(self._write_probe(result), metrics)

    def save(self) -> Saved:
        """Writes the checkpoint and what goes with it.

        Raises:
            LostUpdateError: the update has not been finished, or the model holds other weights by now.
        """
        slot, inputs, round, ended = self._slot, self._inputs, self._round, self._ended
        if ended is None or slot.current_policy != ended.name:
            raise LostUpdateError("the trainer holds another policy than it is asked to save: begin the update again")
        result = ended.result
        files = slot.stage(round, "checkpoint", lambda target: slot.save_policy(target, ended.saved_as))
        digest = checkpoints.weights_digest(files)
        slot.set_current_policy(digest)
        others = {"metrics": [slot.write(to_table([asdict(step) for step in result.steps], STEPS), round, "metrics")]}
        if self._config.optimizer_state == "carried":
            others["optimizer"] = list(slot.stage(round, "optimizer", self._opened().save_optimizer))
        if inputs.average is not None:
            others["ema"] = list(self._stage_average(inputs.average, files))
        others["preference_logps"] = [self._write_measured(result)]
        return Saved(digest, files, others)

    def _write_measured(self, result: UpdateResult) -> FileRef:
        """Writes the preferences that were measured after the last step, with what they were before it.

        It comes last, as the reference may be put in the place of the new policy.
        """
        rows = preference_groups.measured_rows(result, self._reference_tokens(result.sample))
        return self._slot.write(to_table(rows, PREFERENCE_LOGPS), self._round, "preference_logps")

    def _reference_tokens(self, sample: Sequence[PreferenceGroup]) -> list[list[list[float]] | None]:
        """Computes the log-probability of each token under a reference that has not sampled; None of other rounds'."""
        inputs, found = self._inputs, list[list[list[float]] | None]([None] * len(sample))
        own = [place for place, group in enumerate(sample) if group.origin_round is None]
        if own and self._config.token_logprobs and not inputs.reference_sampled:
            self._tell(doing="scoring tokens under the reference")
            self._slot.use(inputs.reference or inputs.policy)
            _, tokens = self._slot.token_logps([sample[place] for place in own])
            for place, of_group in zip(own, tokens, strict=True):
                found[place] = of_group
        return found

    def _write_probe(self, result: UpdateResult) -> FileRef:
        """Writes some of the chosen answers with their log-probabilities before and after the update.

        If the reference is the policy that the update starts from, both are known: as the reference's, which may be the
        sampler's within ``reference_tolerance``, and from the preferences that were measured at the end.
        """
        if self._probed:
            after = [logp for (logp,) in self._slot.logps(self._probed)]
            return self._slot.write_probe(self._round, self._probed, after, self._probed_before)
        groups, final = result.sample[:PROBE_SEQUENCES], result.final_logps[:PROBE_SEQUENCES]
        after, before = [logps[0] for logps in final], [group.reference_logps[0] for group in groups]
        return self._slot.write_probe(self._round, [_best_answer(group) for group in groups], after, before)

    def _wait_with(self, groups: Sequence[PreferenceGroup], share: float) -> None:
        self._waiting.extend(groups)
        self._shards.append((len(groups), share))

    def _groups(self, shard: PreferenceShard) -> list[PreferenceGroup]:
        tables = (self._slot.table(files) for files in (self._inputs.prompts, shard.candidates, shard.preferences))
        return preference_groups.preference_groups(*tables)

    def _referenced(self, groups: list[PreferenceGroup]) -> list[PreferenceGroup]:
        """Returns the groups with the reference's log-probabilities; the first ones decide whose these are."""
        inputs, config, slot = self._inputs, self._config, self._slot
        if not groups or (inputs.state and self._update is None):  # the state has theirs
            return groups
        if self._metrics is None and inputs.reference_sampled:
            self._tell(doing="comparing with the sampler")
            model, agreed = slot.use(inputs.reference or inputs.policy), Agreement.of(slot.recipe)
            groups, self._metrics = preference_groups.with_reference(
                model, groups, config, inputs.drift, agreed.tolerance, agreed.explain, slot.recipe.most_preferences,
                noise=self._noise,
            )  # fmt: skip
            return groups
        if self._metrics is not None and self._metrics["reference_logprobs"] == "sampler":
            return groups
        self._tell(doing="scoring under the reference")
        groups, metrics = preference_groups.with_other_reference(
            slot.use(inputs.reference or inputs.policy), groups, config
        )
        self._metrics = self._metrics or metrics
        return groups

    def _replayed(self) -> list[PreferenceGroup]:
        """Returns preferences of earlier rounds, which the trainer scores anew.

        What the sampler knows of their answers is of another policy. So the reference is that of the round, unless the
        recipe wants the one that they came from.
        """
        slot, inputs = self._slot, self._inputs
        groups = preference_groups.replayed_groups(slot.table(inputs.prompts), slot.table(inputs.replayed))
        if slot.recipe.preferences.replay.reference == "original" or inputs.state:
            return groups
        self._tell(doing="scoring what is replayed")
        scored, _ = preference_groups.with_other_reference(
            slot.use(inputs.reference or inputs.policy), groups, self._config
        )
        return scored

    def _opened(self) -> Update:
        if self._update is None:
            self._open()
        assert self._update is not None
        return self._update

    def _open(self) -> None:
        """Puts the weights in place that the update starts from, with the preferences that wait for them."""
        slot, inputs = self._slot, self._inputs
        self._tell(doing="loading the weights")
        model = slot.use(inputs.policy)
        if inputs.given and inputs.reference_sampled and self._metrics is not None and not inputs.state:
            self._metrics |= self._off_policy()
        mixed = bool(inputs.replayed) and slot.recipe.preferences.replay.reference == "original"
        if inputs.reference is not None or mixed:  # else the reference's log-probabilities are those before
            first = next((count for count, _ in self._shards if count), 0)
            self._probed = [_best_answer(group) for group in self._waiting[: min(first, PROBE_SEQUENCES)]]
            self._probed_before = [logp for (logp,) in slot.logps(self._probed)]
        sampled = self._metrics is not None and self._metrics["reference_logprobs"] == "sampler"
        facts = RoundFacts(
            round=self._round,
            rounds=slot.recipe.rounds,
            reference_is_start=inputs.reference is None and not mixed,
            most_preferences=slot.recipe.most_preferences,
            noise=self._noise if sampled or self._config.precision == "bfloat16" else 0.0,
            host_moments=slot.recipe.devices.offload != "none",
        )
        slot.forget_policy()  # from here on the model is no policy, whatever happens
        worker = slot.worker  # what the update holds must not hold the update: its moments and files go with it at once
        update = Update(
            model,
            [],
            self._config,
            seed=self._seed,
            facts=facts,
            share=0.0,
            saved_as=slot.saved_as(inputs.policy),
            say=lambda notice: worker.progress(notice=notice),
        )
        start = 0
        for count, share in self._shards:
            update.add(self._waiting[start : start + count], share)
            start += count
        self._waiting = PreferencePool()
        if inputs.optimizer:
            update.carry_optimizer(slot.directory(inputs.optimizer))
        if inputs.state:
            self._tokens = sum(step.tokens for step in update.load(slot.directory(inputs.state)))
        self._update = update

    def _off_policy(self) -> dict[str, float | None]:
        """Says how much likelier the completions are under the policy in place than under the one that sampled.

        Of the preferences that are there when the update begins, which in mode streaming are the first ones.
        """
        inputs = self._inputs
        own = self._waiting[
            : sum(count for count, _ in self._shards[: len(inputs.shards) if inputs.replayed else None])
        ]
        return preference_groups.off_policy(own, self._slot.logps(own))

    def _on_step(self, step: StepMetrics) -> None:
        update, every = self._opened(), self._config.checkpoint_steps
        self._tokens += step.tokens
        done, seconds = step.step + 1, time.perf_counter() - self._started
        self._tell(metrics=asdict(step))
        self._tell(done=done, total=update.expected_steps, tokens=self._tokens, loss=step.loss, seconds=seconds)
        if every and done % every == 0 and not update.ended:
            files = self._slot.stage(self._round, "update_state", update.save)
            self._tell(state=[file.to_json() for file in files], step=done, referenced=self._metrics)

    def _tell(self, **told: Any) -> None:
        """Reports progress to whoever has asked for the part of the update that is in progress."""
        self._slot.worker.progress(**told)

    def _stage_average(self, average: PolicyRef, policy: Sequence[FileRef]) -> tuple[FileRef, ...]:
        from pipeline.dpo.ema import blend

        slot = self._slot
        before, after, decay = slot.whole(average), slot.directory(policy), self._config.ema_decay

        def save(target: Path) -> None:
            if slot.is_main:
                blend(before, after, target, decay=decay)

        return slot.stage(self._round, "ema", save)


def _best_answer(group: PreferenceGroup) -> TokenGroup:
    return TokenGroup(group.prompt_id, group.prompt_token_ids, group.candidate_token_ids[:1])
