"""What a run holds while it is running: its recipe, its store, its three workers and its display."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.host.progress import Display
from flows.monitors.notifications import Notifier
from flows.monitors.prefect_artifacts import Artifacts
from flows.monitors.tracking import Tracker
from flows.prefect_api.control import Control
from flows.registry.checkpoints import base_of, is_adapter
from flows.remote.nodes import Nodes, nodes_of
from flows.remote.ranks import worker_environment
from flows.remote.ray.cluster import RayCluster, variables
from flows.remote.ray.pool import RayPool
from flows.remote.worker_process import WorkerProcess
from flows.workers.references import JudgePolicies, PolicyRef
from pipeline.config import ImplicitJudge, Recipe, ReplicasConfig
from pipeline.data.prompts import round_slice
from pipeline.records import content_id, prompt_seed
from storage.log.manifest import Entry, FileRef, Key
from storage.log.run import Run, Writer
from storage.log.store import Store
from storage.tables.labels import Labels
from storage.tables.shards import read_table

STATE_FORMAT = 2
"""That of an update's saved state. One of another format stays where it is, and its steps are taken again."""


@dataclass
class Session:
    """One writer's time with a run. Only this process publishes; workers write files that nobody sees until then.

    ``rounds`` is how many the run is being brought to.
    """

    store: Store
    run: Run
    writer: Writer
    recipe: Recipe
    display: Display
    sampler: WorkerProcess | RayPool
    judge: WorkerProcess | RayPool
    trainer: WorkerProcess
    control: Control
    artifacts: Artifacts
    notifier: Notifier
    judge_versions: list[str] = field(default_factory=list)
    rounds: int = 0
    _policies: dict[int, PolicyRef] = field(default_factory=dict)
    _choices: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    tracker: Tracker = field(default_factory=Tracker)

    @classmethod
    def create(
        cls,
        store: Store,
        run: Run,
        writer: Writer,
        recipe: Recipe,
        display: Display,
        scratch: Path,
        logs: Path,
        control: Control,
        notifier: Notifier,
    ) -> "Session":
        """A session whose workers are not started yet."""
        common = {
            "root": store.root,
            "run": run.name,
            "recipe": recipe.model_dump(mode="json"),
            "scratch": str(scratch),
        }
        temporary = scratch / "tmp"  # what a killed worker leaves goes with the scratch directory
        temporary.mkdir()
        devices = recipe.devices
        environment = {**worker_environment(devices.cpu_threads), "TMPDIR": str(temporary)}

        def worker(kind: str, ranks: int = 1, capacity: int = 1, nodes: Nodes | None = None) -> WorkerProcess:
            return WorkerProcess(kind, common, logs / f"{kind}.log", environment, ranks, capacity, nodes)

        cluster = RayCluster(recipe.cluster) if recipe.cluster.used else None

        def replicated(kind: str, config: ReplicasConfig, capacity: int) -> WorkerProcess | RayPool:
            if cluster is None or not config.replicas:
                return worker(kind, capacity=capacity)
            given = {**worker_environment(devices.cpu_threads), **variables(recipe.cluster.environment)}
            log = logs / f"{kind}.log"
            return RayPool(kind, common, run.created, log, given, config, capacity, cluster, display.say)

        sampler = replicated("sampler", recipe.cluster.sampler, recipe.sampling.shards_in_flight)
        judge = replicated("judge", recipe.cluster.judge, 1)
        trainer = worker("trainer", devices.trainer_ranks, nodes=nodes_of(devices, display.say))
        path = store.report_path(run.name)
        report = path.absolute().as_uri() if path else f"{store.root}/{store.report_key(run.name)}"
        artifacts = Artifacts(run.name, display, report, shown=control.watched)
        return cls(store, run, writer, recipe, display, sampler, judge, trainer, control, artifacts, notifier)

    @property
    def workers(self) -> tuple[WorkerProcess | RayPool, ...]:
        """The three workers."""
        return self.trainer, self.sampler, self.judge

    async def stop(self) -> None:
        """Ends the workers."""
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    def find(self, round: int, stage: str, inputs: str = "", shard: int | None = None) -> Entry | None:
        """The entry of a finished piece of work.

        Where other inputs came after these, as where people change their minds and change them back, it is made the
        newest again, which is what readers take.
        """
        found = self.run.find(Key(round=round, stage=stage, shard=shard, inputs=inputs))
        return found and self.writer.renew(found)

    def find_in(
        self, places: Sequence[tuple[int, str]], table: str, inputs: str, shard: int
    ) -> tuple[Entry | None, str]:
        """The entry of a shard in the first of these places that has it, and the stage to commit it to otherwise."""
        stage = ""
        for round, prefix in places:
            stage = f"{prefix}{table}"
            if done := self.find(round, stage, inputs, shard):
                return done, stage
        return None, stage

    def commit(
        self,
        round: int,
        stage: str,
        files: Sequence[FileRef],
        meta: dict[str, Any] | None = None,
        inputs: str = "",
        shard: int | None = None,
    ) -> Entry:
        """Publishes a finished piece of work; where it is there already, that one stays, and is made the newest."""
        return self.writer.renew(self.writer.commit(Key(round, stage, shard, inputs), files, meta))

    def steps_before(self, round: int) -> int:
        """Optimizer steps of all rounds before this one, as they were finished."""
        return sum(entry.meta.get("steps") or 0 for entry in self.run.rounds()[:round])

    def files(self, round: int, stage: str) -> tuple[FileRef, ...]:
        """The committed files of a stage, in shard order."""
        return tuple(self.run.files(round, stage))

    def policy_hash(self, round: int) -> str:
        """Hash of the weights that a round ended with; round 0's are the initial ones."""
        policy: str = self._latest(round, "checkpoint").meta["policy"]
        return policy

    def policy(self, round: int) -> PolicyRef:
        """The policy that a round ended with."""
        if round not in self._policies:
            (probe,) = self._latest(round, "probe").files
            checkpoint = self._latest(round, "checkpoint")
            found = PolicyRef(checkpoint.meta["policy"], checkpoint.files, probe, self._base(round))
            if round not in self.run.finished:
                return found
            self._policies = {**dict(list(self._policies.items())[-3:]), round: found}  # each shard asks for it
        return self._policies[round]

    def average(self, round: int) -> PolicyRef:
        """The moving average of the policies up to a round; where none was kept yet, it begins with that round's."""
        found = self.run.entries(round=round, stage="ema")
        if not found:
            return self.policy(round)
        return PolicyRef(found[-1].meta["policy"], found[-1].files, self.policy(round).probe)

    def sampled_by(self, round: int) -> int:
        """The round whose policy samples the candidates of a round."""
        return max(round - 1 - self.recipe.staleness, 0)

    def reference(self, round: int) -> PolicyRef | None:
        """The reference of a round's update, where it is not the policy that the update starts from."""
        kind = self.recipe.update.reference
        if kind == "previous":
            reference = self.policy(self.sampled_by(round))
        else:
            reference = self.policy(0) if kind == "initial" else self.average(round - 1)
        return None if reference.digest == self.policy_hash(round - 1) else reference

    def interrupted_update(self, round: int, inputs: str) -> Entry | None:
        """The newest state that an update of these inputs left, where it was interrupted."""
        released = self.run.dropped
        states = self.run.entries(round=round, stage="update_state")
        mine = (entry for entry in states if (entry.meta.get("of"), entry.meta.get("format")) == (inputs, STATE_FORMAT))
        left = (entry for entry in mine if not any(file.path in released for file in entry.files))
        return max(left, key=lambda entry: entry.number, default=None)

    def commit_state(self, round: int, inputs: str, step: int, files: Sequence[FileRef], given: dict[str, Any]) -> None:
        """Publishes the state of an update in progress, and what it had been ``given``; the one before is given up.

        What it had been given is part of its key: with other preferences, as where people change their minds, the state
        after so many steps is another one.
        """
        before = self.interrupted_update(round, inputs)
        key = content_id([inputs, STATE_FORMAT, given])
        meta = {"of": inputs, "format": STATE_FORMAT, **given}
        kept = self.writer.commit(Key(round, "update_state", step, key), files, meta)
        if before is not None and kept.number > before.number:
            self.writer.drop(before.files, "superseded by those of a later step")

    def release_states(self, round: int) -> None:
        """Gives up the states of an update that is done."""
        states = self.run.entries(round=round, stage="update_state")
        if states:
            files = [file for entry in states for file in entry.files]
            self.writer.drop(files, "superseded by the round's checkpoint")

    def judge_policies(self, place: int, number: int) -> JudgePolicies | None:
        """The policies that a judge compares when it judges answers of a round; None where it compares none."""
        config = self.recipe.judges[place]
        if not isinstance(config, ImplicitJudge):
            return None
        return JudgePolicies(*(self.policy(round) for round in config.rounds(number)))

    def choices(self, round: int) -> list[dict[str, Any]]:
        """What people had chosen when the round first asked: all its steps see the same."""
        if round not in self._choices:
            self._choices = {round: Labels(self.store).newest()}
        return self._choices[round]

    def newest_choices(self, round: int) -> list[dict[str, Any]]:
        """What people have chosen by now, which the round's later steps then see."""
        self._choices.pop(round, None)
        return self.choices(round)

    def _base(self, round: int) -> tuple[FileRef, ...]:
        """The whole checkpoint that a round's adapter changes; nothing where the round's own is whole."""
        return tuple(base_of(self.run, round)) if is_adapter(self._latest(round, "checkpoint").files) else ()

    def weight_sync(self, round: int) -> Entry:
        """The entry of the hand-over to the sampler of the policy that a round ended with."""
        return self._latest(round, "handover")

    def shards(self, round: int, *, held_out: bool) -> list[list[int]]:
        """Rows of the prompts table that a round samples, or those held out, cut into shards."""
        prompts = read_table(self.store, self.files(0, "prompts"), columns=["split"])
        sampling = self.recipe.sampling
        if held_out:
            rows = [row for row, split in enumerate(prompts["split"].to_pylist()) if split == "evaluation"]
        else:
            rows = round_slice(prompts, round, sampling.prompts_per_round, self.recipe.seed)
        size = sampling.shard_prompts
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def seed(self, round: int) -> int:
        """Seed of a round's own random choices: the order of its preferences, random opponents."""
        return prompt_seed(self.recipe.seed, round, "round")

    @staticmethod
    def references(files: Sequence[dict[str, Any]]) -> list[FileRef]:
        """A worker's answer as the references that it means."""
        return [FileRef.from_json(file) for file in files]

    def _latest(self, round: int, stage: str) -> Entry:
        return self.run.entries(round=round, stage=stage)[-1]


_CURRENT: ContextVar[Session] = ContextVar("session")


def current() -> Session:
    """The session of the run that is being executed.

    Prefect records the parameters of flows and tasks: they are small and plain, and the session is not among them.
    """
    return _CURRENT.get()


def enter(session: Session) -> None:
    """Makes a session the current one."""
    _CURRENT.set(session)
