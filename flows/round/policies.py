"""The policies of a run's rounds: which one samples, which one holds the update back, and where their weights lie."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from flows.registry.checkpoints import base_of, is_adapter
from flows.registry.first_facts import thoughts_between
from flows.registry.given_rounds import SAMPLER_BASE, SAMPLER_PROBE, sampler_policy
from flows.registry.head import sampler_of, start_of
from flows.round.unsaved import UnsavedPolicy
from flows.workers.references import JudgePolicies, PolicyRef
from pipeline.config import ThoughtMarks
from pipeline.judges.implicit import ImplicitConfig
from pipeline.recipe import Recipe
from storage.log.manifest import Entry, FileRef
from storage.log.run import Run

_KEPT = 4
"""References that are kept in memory: each shard asks for its round's."""


class Policies:
    """Finds policies in a run's log."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self._run, self._recipe = run, recipe
        self._finished: dict[int, PolicyRef] = {}
        self._unsaved: UnsavedPolicy | None = None

    def digest(self, round: int) -> str:
        """Returns the hash of the weights that a round ended with, or their name until they are saved.

        Round 0's are the initial ones.
        """
        if (trained := self.trained(round)) is not None and not trained.is_saved:
            return trained.unsaved.digest
        digest: str = self._latest(round, "checkpoint").meta["policy"]
        return digest

    def after(self, round: int) -> PolicyRef:
        """Returns the policy that a round ended with, or ends with if it is not saved yet."""
        trained = self.trained(round)
        return trained.unsaved if trained is not None and not trained.is_saved else self.committed(round)

    def committed(self, round: int) -> PolicyRef:
        """Returns the policy that a round ended with, as the log has it."""
        if round not in self._finished:
            (probe,) = self._latest(round, "probe").files
            checkpoint = self._latest(round, "checkpoint")
            name = trained.unsaved.digest if (trained := self.trained(round)) is not None else None
            policy = PolicyRef(checkpoint.meta["policy"], checkpoint.files, probe, self._base(round), name)
            if round not in self._run.finished:
                return policy
            self._finished = {**dict(list(self._finished.items())[1 - _KEPT :]), round: policy}
        return self._finished[round]

    def trained(self, round: int) -> UnsavedPolicy | None:
        """Returns what a round's update has made, to be saved or saved, if it was the last one of this process."""
        return self._unsaved if self._unsaved is not None and self._unsaved.round == round else None

    def keep_unsaved(self, trained: UnsavedPolicy) -> None:
        """Takes the policy of an update, which counts as its round's from here on."""
        self._unsaved = trained

    def forget_unsaved(self, round: int) -> None:
        """Forgets what is left of an earlier try of this round."""
        if self.trained(round) is not None:
            self._unsaved = None

    async def saved(self, round: int) -> PolicyRef:
        """Returns the same once it is saved: what names it may be committed from then on.

        Raises:
            As for `UnsavedPolicy.saved`.
        """
        if (trained := self.trained(round)) is not None:
            await trained.saved()
        return self.after(round)

    @cached_property
    def thought(self) -> ThoughtMarks | None:
        """Returns the marks around what the policies think before they answer; they are those of round 0's."""
        return thoughts_between(self._run, self._recipe.sampling.thought)

    def average(self, round: int) -> PolicyRef:
        """Returns the moving average of the policies up to a round; the round's own policy if it keeps none."""
        averages = self._run.entries(round=round, stage="ema")
        if not averages:
            return self.after(round)
        return PolicyRef(averages[-1].meta["policy"], averages[-1].files, self.after(round).probe)

    def start(self, round: int) -> int:
        """Returns the round whose policy a round's update starts from: the newest before it that passed its gate."""
        return start_of(self._run, round)

    def sampled_by(self, round: int) -> int:
        """Returns the round whose policy samples the completions of a round."""
        return sampler_of(self._run, round, self._recipe.staleness)

    def sampling_policy(self, round: int) -> PolicyRef:
        """Returns the policy that sampled the completions of a round, which need not be one of the run's own."""
        entry = sampler_policy(self._run, round)
        if entry is None:
            return self.after(self.sampled_by(round))
        (probe,) = self._latest(round, SAMPLER_PROBE).files
        base = self._run.entries(round, SAMPLER_BASE)
        return PolicyRef(entry.meta["policy"], entry.files, probe, base[-1].files if base else ())

    def sampling_sync(self, round: int) -> Mapping[str, Any]:
        """Returns what the sync of the policy that sampled a round's completions found of sampler and trainer."""
        return (sampler_policy(self._run, round) or self.weight_sync(self.sampled_by(round))).meta

    def reference(self, round: int) -> PolicyRef | None:
        """Returns the reference of a round's update; None if it is the policy that the update starts from."""
        kind = self._recipe.update.reference
        if kind == "previous":
            reference = self.sampling_policy(round)
        else:
            reference = self.after(0) if kind == "initial" else self.average(self.start(round))
        return None if reference.digest == self.digest(self.start(round)) else reference

    def of_judge(self, place: int, round: int) -> JudgePolicies | None:
        """Returns the two policies that a judge compares in judging a round's completions; None if it compares none."""
        config = self._recipe.judges[place]
        if not isinstance(config, ImplicitConfig):
            return None
        return JudgePolicies(*(self.after(number) for number in config.rounds(self.start(round) + 1)))

    def weight_sync(self, round: int) -> Entry:
        """Returns the entry that says how the sampler took the weights that a round ended with."""
        return self._latest(round, "handover")

    def _base(self, round: int) -> tuple[FileRef, ...]:
        """Returns the full checkpoint that a round's adapter changes; nothing if the round's own is full.

        It lies further back with every round, and is usually known from the round before.
        """
        if not is_adapter(self._latest(round, "checkpoint").files):
            return ()
        before = self._finished.get(self.start(round))
        return tuple(base_of(self._run, round)) if before is None else before.base or before.files

    def _latest(self, round: int, stage: str) -> Entry:
        return self._run.entries(round=round, stage=stage)[-1]
