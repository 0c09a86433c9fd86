"""The update of a round: the trainer is given the round's preferences as they come, and what it makes is committed."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.host.progress import Stage
from flows.remote.calls import timed
from flows.round.context import Session, current
from flows.round.shards import Shard, Shards, files_of, preference_shards
from flows.round.step import step
from flows.workers.references import PolicyRef, PreferenceShard, UpdateInputs, hashes
from pipeline.errors import DataError
from pipeline.records import content_id
from storage.log.manifest import Entry
from storage.tables.checkpoints import weights_digest

WITH_CHECKPOINT = ("metrics", "probe", "optimizer", "ema")
"""What an update leaves beside the checkpoint, by the stages of its entries."""


@step("{run} r{number} update")
async def update(
    run: str, number: int, shards: Shards, decided: Entry | None = None, replayed: Entry | None = None
) -> Entry:
    """The DPO update: from the policy of the round before to the round's checkpoint.

    Args:
        shards: those of the round; in mode streaming some may still be on their way.
        decided: people's preferences, in place of those of the shards.
        replayed: preferences of earlier rounds beside them.

    Raises:
        DataError: no prompt of the round gave a preference, so that there is nothing to learn from.
    """
    session = current()
    with session.display.stage(number, "update") as display:
        job = _Update(session, display, number, decided, replayed)
        if job.may_be_done or session.recipe.mode == "phased" or decided or replayed:
            through = await shards.all()
            if done := job.find(through):
                return done
        else:
            through = await shards.first(job.saved_shards)
        if len(through) == len(shards):  # else it is shown from its first step on
            display.begin()
        await job.begin(through, len(shards))
        async for shard in shards.after(job.fed):
            await job.add(shard, len(shards))
        return await job.finish(await shards.all())


class _Update:
    """One round's update as the flow sees it."""

    def __init__(
        self, session: Session, display: Stage, number: int, decided: Entry | None, replayed: Entry | None
    ) -> None:
        config = session.recipe.update
        self._session, self._display, self._number = session, display, number
        self._decided, self._replayed = decided, replayed
        self._policy, self._reference = session.policy(number - 1), session.reference(number)
        self._optimizer = session.files(number - 1, "optimizer") if config.optimizer_state == "carried" else ()
        self._average = session.average(number - 1) if config.reference == "ema" else None
        self._inputs = content_id([
            self._policy.digest, _hash(self._reference), _hash(self._average),
            hashes(self._optimizer), config.model_dump(mode="json"),
            session.recipe.rounds if config.schedule_over == "run" else None,
            replayed and [files_of([replayed])[0].sha256, session.recipe.preferences.replay.reference],
        ])  # fmt: skip
        self._state = session.interrupted_update(number, self._inputs)
        self._steps_before = session.steps_before(number)
        self._given: list[Shard] = []
        self._busy: list[Sequence[float]] = []
        self._work: dict[str, Any] = {}

    @property
    def saved_shards(self) -> int:
        """How many shards an update that was interrupted had been given when its state was saved."""
        return self._state.meta["shards"] if self._state else 0

    @property
    def fed(self) -> int:
        """How many shards the trainer has been given."""
        return len(self._given)

    @property
    def may_be_done(self) -> bool:
        """Whether the round has a checkpoint, perhaps of these inputs."""
        return bool(self._session.run.entries(round=self._number, stage="checkpoint"))

    def find(self, through: Sequence[Shard]) -> Entry | None:
        """The checkpoint of exactly these inputs, where it is there already, with all that goes with it."""
        session, number = self._session, self._number
        done = session.find(number, "checkpoint", self._key(through))
        if done is not None:
            for stage in WITH_CHECKPOINT:
                session.find(number, stage, done.meta["policy"])
        return done

    async def begin(self, through: Sequence[Shard], whole: int) -> None:
        """Begins with the shards that are through, or goes on where an update of these very shards was interrupted."""
        session, number, config = self._session, self._number, self._session.recipe.update
        if config.optimizer_state == "carried" and number > 1 and not self._optimizer:
            session.display.say(
                f"round {number}: round {number - 1} kept no moments of the optimizer: it begins with none"
            )
        saved = through[: self.saved_shards]
        if self._state is not None and self._state.meta["preferences"] == self._key(saved):
            self._given = list(saved)
        else:
            self._given, self._state = list(through), None
        own = preference_shards(self._given, whole)
        if self._decided is not None:
            own = [PreferenceShard(files_of(shard.candidates for shard in through), self._decided.files, 1.0)]
        reference = self._reference or self._policy
        given = UpdateInputs(
            policy=self._policy,
            reference=self._reference,
            reference_sampled=reference.digest == session.policy_hash(session.sampled_by(number)),
            prompts=session.files(0, "prompts"),
            shards=tuple(own),
            replayed=files_of([self._replayed]),
            optimizer=self._optimizer,
            average=self._average,
            state=files_of([self._state]),
            referenced=self._state.meta["referenced"] if self._state else None,
            drift=session.weight_sync(session.sampled_by(number)).meta["per_sequence"],
        )
        await self._ask("begin_update", inputs=given.to_json(), round=number, seed=session.seed(number))

    async def add(self, shard: Shard, whole: int) -> None:
        """The next shard."""
        self._given.append(shard)
        for part in preference_shards([shard], whole, self.fed - 1):
            await self._ask("add_preferences", shard=part.to_json())

    async def finish(self, through: Sequence[Shard]) -> Entry:
        """Has the last steps taken, and publishes the checkpoint and what goes with it.

        The checkpoint comes last: where it is, all else is. That is keyed by the weights, so that an update that is
        done again after a crash never meets what the first try left.
        """
        session, number = self._session, self._number
        self._check_any(through)
        trained = await self._ask("finish_update")
        after = trained["policy"]
        for name, files in trained["others"].items():
            digest = {"policy": weights_digest(session.references(files))} if name == "ema" else None
            session.commit(number, name, session.references(files), digest, after["digest"])
        meta: dict[str, Any] = {
            "policy": after["digest"],
            "reference": (self._reference or self._policy).digest,
            **trained["metrics"],
            **self._work,
            "span": [self._busy[0][0], self._busy[-1][1]],
            "busy": self._busy,
        }
        return session.commit(number, "checkpoint", session.references(after["files"]), meta, self._key(through))

    def _check_any(self, through: Sequence[Shard]) -> None:
        found = [self._decided] if self._decided else [shard.preferences for shard in through]
        if not any(entry is not None and entry.meta["preferences"] for entry in found):
            raise DataError(
                f"round {self._number} of run '{self._session.run.name}' gave no preference: all its prompts were "
                "dropped; sample more candidates, raise the temperature or lower preferences.min_margin or "
                "min_probability"
            )

    async def _ask(self, method: str, **arguments: Any) -> Any:
        """The trainer's answer; when it worked is kept."""
        result, self._work = await timed(self._session.trainer, method, on_progress=self._hear, **arguments)
        self._busy.append(self._work["span"])
        return result

    def _key(self, through: Sequence[Shard]) -> str:
        preferences = [self._decided] if self._decided else [shard.preferences for shard in through]
        return content_id([self._inputs, hashes(files_of(preferences))])

    def _hear(self, metrics: Mapping[str, Any]) -> None:
        session, number = self._session, self._number
        if "notice" in metrics:
            session.display.say(f"round {number}: {metrics['notice']}")
        elif "metrics" in metrics:
            session.tracker.step(number, self._steps_before, metrics["metrics"])
        elif "state" in metrics:
            given = {
                "shards": self.fed, "preferences": self._key(self._given), "referenced": metrics["referenced"]
            }  # fmt: skip
            files = session.references(metrics["state"])
            session.commit_state(number, self._inputs, metrics["step"], files, given)
        else:
            self._display.report(metrics)


def _hash(policy: PolicyRef | None) -> str | None:
    return None if policy is None else policy.digest
