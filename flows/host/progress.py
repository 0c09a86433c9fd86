"""What a person sees while a run goes on: one line a stage, with its progress, tokens per second and time left.

On a terminal the lines move; elsewhere (a log file, CI) each stage prints one line when it ends.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Stage:
    """A stage in progress: its shards report what they have done, the stage shows the sum.

    A stage without any work, because the run's log has it all, is never shown.
    """

    def __init__(self, progress: Progress, round: int, name: str, total: float | None, shards: int) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._shards: dict[int, Mapping[str, Any]] = {}
        self._total = total
        self._all_shards = shards
        self._started = 0.0
        self.name = name
        self.label = f"round {round}  {name}"

    @property
    def worked(self) -> bool:
        """Whether there was anything to do."""
        return self._started > 0

    @property
    def seconds(self) -> float:
        """Time since the stage began to work."""
        return time.perf_counter() - self._started

    def begin(self) -> None:
        """Shows the stage: there is work to do."""
        if not self.worked:
            self._started = time.perf_counter()
            self._task = self._progress.add_task(self.label, total=self._total, note="")

    def report(self, metrics: Mapping[str, Any], shard: int = 0) -> None:
        """Takes a worker's progress: ``done``, and where it says so ``total``, ``tokens``, ``loss``."""
        self.begin()
        self._shards[shard] = metrics
        self._total = metrics.get("total") if self._total is None else self._total
        done = sum(metrics.get("done", 0) for metrics in self._shards.values())
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=self._total, note=self.note)

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1; 0 if nobody knows how much there is."""
        done = sum(metrics.get("done", 0) for metrics in self._shards.values())
        return min(done / self._total, 1.0) if self._total else 0.0

    @property
    def note(self) -> str:
        """Throughput and loss, if the stage has them."""
        tokens = sum(metrics.get("tokens", 0) for metrics in self._shards.values())
        notes = [f"shard {len(self._shards)}/{self._all_shards}"] if self._all_shards > 1 else []
        notes += [f"{tokens / self.seconds:,.0f} tokens/s"] if tokens else []
        notes += [f"loss {metrics['loss']:.4f}" for metrics in list(self._shards.values())[-1:] if "loss" in metrics]
        return "  ".join(notes)

    def end(self) -> None:
        """Takes the stage off the display."""
        if self._task is not None:
            self._progress.remove_task(self._task)


class Display:
    """The display of one run."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._rounds: TaskID | None = None
        self._stages: list[Stage] = []
        self.rounds_done = (0, 1)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """A line that says what is being done, until the block ends."""
        task = self._progress.add_task(text, total=None, note="")
        try:
            yield
        finally:
            self._progress.remove_task(task)

    @contextlib.asynccontextmanager
    async def waiting(self, text: str) -> AsyncIterator[None]:
        """A line that says what is being waited for, until the block ends."""
        with self.doing(text):
            yield

    def rounds(self, done: int, total: int) -> None:
        """Shows how far the whole run is."""
        self.rounds_done = (done, total)
        if self._rounds is None:
            self._rounds = self._progress.add_task("rounds", total=total, completed=done, note="")
        self._progress.update(self._rounds, completed=done)

    @property
    def stages(self) -> list[Stage]:
        """The stages that are at work."""
        return [stage for stage in self._stages if stage.worked]

    @contextlib.contextmanager
    def stage(self, round: int, name: str, total: float | None = None, shards: int = 1) -> Iterator[Stage]:
        """A stage of a round: shown while the block works, and then as one line with its time."""
        stage = Stage(self._progress, round, name, total, shards)
        self._stages.append(stage)
        try:
            yield stage
        finally:
            self._stages.remove(stage)
            stage.end()
        if stage.worked:
            self.say(f"{stage.label:<28}{stage.seconds:7.1f} s   {stage.note}".rstrip())
