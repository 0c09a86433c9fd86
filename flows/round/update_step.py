"""The update of a round: the trainer is given the round's preferences as they come, and what it makes is committed.

What it makes is saved and committed while the sampler works with it already, if that has it from memory: see `unsaved`.

A round in which no prompt gave a preference has nothing to learn from. It keeps the policy of the round before, whose
files it names as its own, and is a round like any other: it is evaluated, finished, and others follow it.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from flows.host.progress import Stage
from flows.registry.given_rounds import sampler_policy
from flows.registry.resume import unread_states
from flows.registry.resume_check import STATES
from flows.remote.calls import Answer, Client
from flows.round.context import RoundContext
from flows.round.shards import Shard, Shards, files_of, preference_shards
from flows.round.step import step
from flows.round.unsaved import UnsavedPolicy
from flows.round.update_state import commit_state, interrupted_update
from flows.workers.references import PolicyRef, PreferenceShard, Trained, UpdateInputs, hashes
from flows.workers.trainer import TrainerWorker
from pipeline.records import content_id
from storage.log.manifest import Entry, FileRef
from storage.tables.checkpoints import weights_digest

Result = TypeVar("Result")

WITH_CHECKPOINT = ("metrics", "probe", "preference_logps", "optimizer", "ema")
"""What an update leaves beside the checkpoint, by the stages of its entries."""
WITH_POLICY = ("probe", "optimizer", "ema")
"""The part of it that goes on with the policy if a round has no update."""


@step("{context.name} r{number} update")
async def update(
    context: RoundContext, number: int, shards: Shards, by_people: Entry | None = None, replayed: Entry | None = None
) -> None:
    """Trains the policy of the round before with DPO. The result is the round's checkpoint, now or once it is saved.

    If the round has no preferences, its checkpoint is that of the round before.

    Args:
        shards: those of the round; in mode streaming some may not be done yet.
        by_people: people's preferences, in place of those of the shards.
        replayed: preferences of earlier rounds beside them.
    """
    with context.display.stage(number, "update", unit="steps") as display:
        job = _Update(context, display, number, by_people, replayed)
        if job.may_be_done or context.recipe.mode == "phased" or by_people or replayed:
            ready = await shards.all()
            if job.find(ready):
                return
        else:
            ready = await shards.first(job.saved_shards)
        if len(ready) == len(shards):  # else the stage is shown once the trainer says what it is doing
            if not job.has_preferences(ready):
                job.keep_policy(ready)
                return
            display.begin()
        await job.begin(ready, len(shards))
        async for shard in shards.after(job.fed):
            await job.add(shard, len(shards))
        await job.finish(await shards.all())


class _Update:
    """One round's update as the flow sees it."""

    def __init__(
        self, context: RoundContext, display: Stage, number: int, by_people: Entry | None, replayed: Entry | None
    ) -> None:
        self._start = context.policies.start(number)
        self._failures = number - 1 - self._start
        config, gate = context.recipe.update, context.recipe.gate
        config = config if gate is None else gate.retried(config, self._failures)
        self._context, self._display, self._number = context, display, number
        self._by_people, self._replayed = by_people, replayed
        self._policy, self._reference = context.policies.after(self._start), context.policies.reference(number)
        self._optimizer = context.files(self._start, "optimizer") if config.optimizer_state == "carried" else ()
        self._average = context.policies.average(self._start) if config.reference == "ema" else None
        self._inputs = content_id([
            self._policy.digest, _hash(self._reference), _hash(self._average),
            hashes(self._optimizer), config.hashed(),
            context.recipe.rounds if config.schedule_over == "run" else None,
            replayed and [files_of([replayed])[0].sha256, context.recipe.preferences.replay.reference],
        ])  # fmt: skip
        self._state = interrupted_update(context.run, number, self._inputs)
        self._steps_before = context.steps_before(number)
        self._given: list[Shard] = []
        self._busy: list[Sequence[float]] = []
        self._work: dict[str, Any] = {}

    @property
    def saved_shards(self) -> int:
        """Counts the shards that an update that was interrupted had been given when its state was saved."""
        return self._state.meta["shards"] if self._state else 0

    @property
    def fed(self) -> int:
        """Counts the shards that the trainer has been given."""
        return len(self._given)

    @property
    def may_be_done(self) -> bool:
        """Says whether the round has a checkpoint, perhaps of these inputs."""
        return bool(self._context.run.entries(round=self._number, stage="checkpoint"))

    def find(self, done: Sequence[Shard]) -> Entry | None:
        """Finds the checkpoint of exactly these inputs, with all that goes with it; None if there is none yet."""
        context, number = self._context, self._number
        checkpoint = context.find(number, "checkpoint", self._key(done))
        if checkpoint is not None:
            for stage in WITH_CHECKPOINT:
                context.find(number, stage, checkpoint.meta["policy"])
        return checkpoint

    async def begin(self, done: Sequence[Shard], whole: int) -> None:
        """Begins with the shards that are done, or goes on where an update of these very shards was interrupted."""
        context, number, config = self._context, self._number, self._context.recipe.update
        if config.optimizer_state == "carried" and number > 1 and not self._optimizer:
            context.display.say(
                f"round {number}: round {self._start} kept no moments of the optimizer: it begins with none"
            )
        saved = done[: self.saved_shards]
        if self._state is not None and self._state.meta["preferences"] == self._key(saved):
            self._given = list(saved)
        else:
            self._given, self._state = list(done), None
        own = preference_shards(self._given, whole)
        if self._by_people is not None:
            own = [PreferenceShard(files_of(shard.candidates for shard in done), self._by_people.files, 1.0)]
        reference = self._reference or self._policy
        synced = context.policies.sampling_sync(number)
        given = UpdateInputs(
            policy=self._policy,
            reference=self._reference,
            reference_sampled=reference.digest == context.policies.sampling_policy(number).digest,
            given=self._reference is not None and sampler_policy(context.run, number) is not None,
            prompts=context.files(0, "prompts"),
            shards=tuple(own),
            replayed=files_of([self._replayed]),
            optimizer=self._optimizer,
            average=self._average,
            state=files_of([self._state]),
            referenced=self._state.meta["referenced"] if self._state else None,
            drift=synced["per_sequence"],
            noise=synced.get("noise", 0.0),
            failures=self._failures,
        )
        seed = context.seed(number)
        self._note(await self._trainer.call(TrainerWorker.begin_update, inputs=given, round=number, seed=seed))

    async def add(self, shard: Shard, whole: int) -> None:
        """Gives the trainer the next shard."""
        self._given.append(shard)
        for part in preference_shards([shard], whole, self.fed - 1):
            self._note(await self._trainer.call(TrainerWorker.add_preferences, shard=part))

    async def finish(self, done: Sequence[Shard]) -> None:
        """Has the last steps taken. If the sampler cannot have the policy from memory, it is saved at once."""
        context, number = self._context, self._number
        if not self.has_preferences(done):
            self.keep_policy(done)
            return
        name = f"unsaved {uuid.uuid4().hex}"
        trained = self._note(await self._trainer.call(TrainerWorker.finish_update, name=name))
        if not context.saves_beside:
            self._display.report({"doing": "saving"})
            await self._save(trained, done)
            return
        policy = PolicyRef(name, (), trained.probe)
        context.policies.keep_unsaved(UnsavedPolicy(number, policy, lambda: self._save(trained, done)))

    async def _save(self, trained: Trained, done: Sequence[Shard]) -> PolicyRef:
        """Has the trainer write the policy, and publishes the checkpoint and what goes with it.

        The checkpoint comes last: if it is there, all else is. What goes with it is keyed by the weights, so that an
        update that is done again after a crash never meets what the first try left.
        """
        context, number = self._context, self._number
        saved = self._note(await context.workers.trainer.call(TrainerWorker.save_update))
        for name, files in {**saved.others, "probe": [trained.probe]}.items():
            digest = {"policy": weights_digest(files)} if name == "ema" else None
            context.commit(number, name, files, digest, saved.digest)
        meta: dict[str, Any] = {
            "policy": saved.digest,
            "reference": (self._reference or self._policy).digest,
            **trained.metrics,
            **self._work,
            "span": [self._busy[0][0], self._busy[-1][1]],
            "busy": self._busy,
        }
        context.commit(number, "checkpoint", saved.files, meta, self._key(done))
        return context.policies.committed(number)

    def has_preferences(self, done: Sequence[Shard]) -> bool:
        """Says whether there is something to learn from."""
        found = [self._by_people] if self._by_people else [shard.preferences for shard in done]
        return any(entry is not None and entry.meta["preferences"] for entry in found)

    def keep_policy(self, done: Sequence[Shard]) -> None:
        """Ends the round's update without one: its checkpoint, and what goes with it, are those of the round before.

        Their files are named and not copied, so that they stay as long as one of the rounds needs them.
        """
        context, number, policy = self._context, self._number, self._policy
        context.display.say(f"round {number}: no prompt gave a preference, so there is no update")
        read = {"probe", *STATES} - unread_states(context.recipe)
        for stage in WITH_POLICY:
            for entry in context.run.entries(self._start, stage)[-1:] if stage in read else ():
                context.commit(number, stage, entry.files, entry.meta, policy.digest)
        meta = {
            "policy": policy.digest, "reference": (self._reference or policy).digest, "of_round": self._start,
            "steps": 0, "seconds": 0.0,
        }  # fmt: skip
        context.commit(number, "checkpoint", policy.files, meta, self._key(done))

    @property
    def _trainer(self) -> Client[TrainerWorker]:
        return self._context.workers.trainer.asking(on_progress=self._hear)

    def _note(self, answer: Answer[Result]) -> Result:
        """Returns what the trainer returned, and keeps when it worked."""
        self._work = answer.work
        self._display.worked_on(answer.work)
        self._busy.append(self._work["span"])
        return answer.result

    def _key(self, done: Sequence[Shard]) -> str:
        preferences = [self._by_people] if self._by_people else [shard.preferences for shard in done]
        return content_id([self._inputs, hashes(files_of(preferences))])

    def _hear(self, told: Mapping[str, Any]) -> None:
        context, number = self._context, self._number
        if "notice" in told:
            context.display.say(f"round {number}: {told['notice']}")
        elif "metrics" in told:
            context.monitors.tracker.step(number, self._steps_before, told["metrics"])
        elif "state" in told:
            given = {
                "shards": self.fed, "preferences": self._key(self._given), "referenced": told["referenced"]
            }  # fmt: skip
            files = [FileRef.from_json(file) for file in told["state"]]
            commit_state(context.run, context.writer, number, self._inputs, told["step"], files, given)
        else:
            self._display.report(told)


def _hash(policy: PolicyRef | None) -> str | None:
    return None if policy is None else policy.digest
