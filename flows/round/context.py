"""What the steps of a round share, and hand to each other as an argument."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from flows.host.progress import Display
from flows.monitors.monitors import Monitors
from flows.prefect_api.control import Control
from flows.round.policies import Policies
from flows.round.worker_set import WorkerSet
from flows.workers.references import TrialPrompt
from pipeline.recipe import Recipe
from pipeline.records import prompt_seed
from storage.log.manifest import Entry, FileRef, Key, key_of
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from storage.tables.shared_values import Labels


@dataclass
class RoundContext:
    """One writer's time with a run. Only this process publishes; workers write files that nobody sees until then.

    Attributes:
        goal: how many rounds the run is being brought to.
        trial: a prompt to try the judges on, if it was read before the run began.
        judge_versions: version of each judge, in the recipe's order.
    """

    store: Store
    run: Run
    writer: Writer
    recipe: Recipe
    workers: WorkerSet
    policies: Policies
    display: Display
    control: Control
    monitors: Monitors
    goal: int = 0
    trial: TrialPrompt | None = None
    judge_versions: list[str] = field(default_factory=list)
    _choices: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Returns the run's name."""
        return self.run.name

    def find(self, round: int, stage: str, inputs: str = "", shard: int | None = None) -> Entry | None:
        """Returns the entry of a finished piece of work; None if it is not finished.

        Readers take the newest entry. If other inputs came after these, as when people change their minds and change
        them back, this entry is made the newest again.
        """
        entry = self.run.find(Key(round=round, stage=stage, shard=shard, inputs=inputs))
        return entry and self.writer.renew(entry)

    def given(self, round: int, stage: str, shard: int) -> Entry:
        """Returns the entry of a shard's completions, or of the judgments of them, that the run was given."""
        found = [entry for entry in self.run.entries(round, stage) if key_of(entry).shard == shard]
        return found[-1]

    def find_in(
        self, places: Sequence[tuple[int, str]], table: str, inputs: str, shard: int | None = None
    ) -> tuple[Entry | None, str]:
        """Returns an entry from the first of these places that has it, or None, and the stage to commit to."""
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
        """Publishes a finished piece of work; one that is there already stays, and is made the newest."""
        return self.writer.renew(self.writer.commit(Key(round, stage, shard, inputs), files, meta))

    def files(self, round: int, stage: str) -> tuple[FileRef, ...]:
        """Returns the committed files of a stage, in shard order."""
        return tuple(self.run.files(round, stage))

    def steps_before(self, round: int) -> int:
        """Counts the optimizer steps of all finished rounds before this one."""
        return sum(entry.meta.get("steps") or 0 for entry in self.run.rounds()[:round])

    def seed(self, round: int) -> int:
        """Returns the seed of a round's own random choices: the order of its preferences, random opponents."""
        return prompt_seed(self.recipe.seed, round, "round")

    def choices(self, round: int) -> list[dict[str, Any]]:
        """Returns what people had chosen when the round first asked: all its steps see the same."""
        if round not in self._choices:
            self._choices = {round: Labels(self.store).newest()}
        return self._choices[round]

    def newest_choices(self, round: int) -> list[dict[str, Any]]:
        """Reads what people have chosen by now, which the round's later steps then see."""
        self._choices.pop(round, None)
        return self.choices(round)


_CURRENT: ContextVar[RoundContext] = ContextVar("context")


def current_context() -> RoundContext:
    """Returns the context of the run that is executed, for its flow alone.

    Prefect records a flow's parameters, which are plain values, so the context cannot be one of them. All that the
    flow calls is given the context as an argument.
    """
    return _CURRENT.get()


def enter(context: RoundContext) -> None:
    """Sets the context that `current_context` returns to the flow that this task runs."""
    _CURRENT.set(context)
