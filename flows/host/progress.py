"""What a person sees while a run goes on: one line a stage, with its progress, tokens per second and time left.

On a terminal the lines move. Elsewhere (a log file, CI) each stage prints one line when it ends, and an update prints
one for its steps as they are taken. If ten seconds would pass without a line, one says what is at work.
"""

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.host.work_spans import Span, busy_seconds

SILENT_SECONDS = 8.0
"""Without a line, after which one says what is at work, if that is seen nowhere else."""
STEP_SECONDS = 2.0
"""Between the lines of an update's steps."""
_LOOK_SECONDS = 0.5


class Stage:
    """A stage in progress: its shards report what they have done, the stage shows the sum.

    A stage without any work, because the run's log has it all, is never shown.

    Args:
        round, name: what its line begins with.
        total: how much there is to do, if that is known already.
        shards: how many report.
        unit: of what is done, such as ``steps``.
        tell: prints a line, if nothing that moves shows the stage.
    """

    def __init__(
        self,
        progress: Progress,
        round: int | None,
        name: str,
        total: float | None,
        shards: int,
        unit: str,
        tell: Callable[[str], None],
    ) -> None:
        self._progress, self.name, self.label = progress, name, name if round is None else f"round {round}  {name}"
        self._total, self._all_shards, self._unit, self._tell = total, shards, unit, tell
        self._task: TaskID | None = None
        self._shards: dict[int, Mapping[str, Any]] = {}
        self._doing = ""
        self._spans: list[Span] = []
        self._started = self._told = 0.0

    @property
    def worked(self) -> bool:
        """Says whether there was anything to do."""
        return self._started > 0

    @property
    def seconds(self) -> float:
        """Returns the time in which the stage was worked on, if the workers have said; else since it began."""
        return busy_seconds(self._spans) if self._spans else time.perf_counter() - self._started

    @property
    def done(self) -> float:
        """Says how much is done, of all shards."""
        done: float = sum(metrics.get("done", 0) for metrics in self._reports)
        return done

    @property
    def share(self) -> float:
        """Says how much of it is done, from 0 to 1; 0 if nobody knows how much there is."""
        return min(self.done / self._total, 1.0) if self._total else 0.0

    def begin(self) -> None:
        """Shows the stage: there is work to do."""
        if not self.worked:
            self._started = time.perf_counter()
            self._task = self._progress.add_task(self.label, total=self._total, count="", note="")

    def report(self, metrics: Mapping[str, Any], shard: int = 0) -> None:
        """Takes a worker's progress: ``done``, and if it gives them ``total``, ``tokens``, ``loss``; or ``doing``."""
        self.begin()
        steps = self.done
        self._doing = metrics.get("doing", "")
        if not self._doing:
            self._shards[shard] = metrics
            self._total = metrics.get("total") if self._total is None else self._total
        if self._task is not None:
            self._progress.update(self._task, completed=self.done, total=self._total, count=self._count, note=self.note)
        now = time.perf_counter()
        if self._unit == "steps" and self.done > steps and now - self._told >= STEP_SECONDS:
            self._told = now
            self._tell(self.line)

    def worked_on(self, work: Mapping[str, Any]) -> None:
        """Takes when a worker worked on it, as its answer says: what the worker waited for before does not count."""
        if "span" in work:
            self._spans.append(work["span"])

    @property
    def note(self) -> str:
        """Says what is being done beside its steps, throughput and loss, if the stage has them."""
        tokens = sum(metrics.get("tokens", 0) for metrics in self._reports)
        notes = [self._doing] if self._doing else []
        notes += [f"shard {len(self._shards)}/{self._all_shards}"] if self._all_shards > 1 else []
        notes += [f"{tokens / self.seconds:,.0f} tokens/s"] if tokens and self.seconds else []
        notes += [f"loss {metrics['loss']:.4f}" for metrics in self._reports[-1:] if "loss" in metrics]
        return "  ".join(notes)

    @property
    def line(self) -> str:
        """Describes the stage as it is now, in one line."""
        parts = [self.label, self._count, self.note, f"{time.perf_counter() - self._started:.0f} s"]
        return "  ".join(part for part in parts if part)

    def last_line(self) -> str:
        """Ends what the stage was doing, and describes it as it was, with its time."""
        self._doing = ""
        done = f"{self.done:,.0f} {self._unit}" if self._unit and self.done else ""
        return f"{self.label:<28}{self.seconds:7.1f} s   {'  '.join(filter(None, (done, self.note)))}".rstrip()

    def end(self) -> None:
        """Takes the stage off the display."""
        if self._task is not None:
            self._progress.remove_task(self._task)

    @property
    def _reports(self) -> list[Mapping[str, Any]]:
        return list(self._shards.values())  # copied at once: the line may be asked for by another thread

    @property
    def _count(self) -> str:
        if self._total is None:
            return f"{self.done:,.0f} {self._unit}".rstrip() if self.done else ""
        return f"{self.done:,.0f}/{self._total:,.0f} {self._unit}".rstrip()


@dataclass
class _Doing:
    """Something that takes its time and has no steps."""

    text: str
    started: float = field(default_factory=time.perf_counter)

    @property
    def line(self) -> str:
        return f"{self.text}  {time.perf_counter() - self.started:.0f} s"


class Display:
    """The display of one run."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._rounds: TaskID | None = None
        self._stages: list[Stage] = []
        self._doing: list[_Doing] = []
        self._said = time.monotonic()
        self._resting = False
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        self.rounds_done = (0, 1)

    def __enter__(self) -> "Display":
        self._progress.start()
        if not self._console.is_terminal:
            self._watch = threading.Thread(target=self._break_silence, name="rondo-progress", daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.join()
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints a line that stays. A run goes on if nobody can be told, as when the log file's disk is full."""
        self._said = time.monotonic()
        with contextlib.suppress(OSError):
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Shows a line that says what is being done, until the block ends."""
        task, doing = self._progress.add_task(text, total=None, count="", note=""), _Doing(text)
        self._doing.append(doing)
        try:
            yield
        finally:
            self._doing.remove(doing)
            self._progress.remove_task(task)

    @contextlib.asynccontextmanager
    async def waiting(self, text: str) -> AsyncIterator[None]:
        """Shows a line that says what is being waited for, until the block ends."""
        with self.doing(text):
            yield

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Keeps silent while the block runs, in which nothing is at work, perhaps for days."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    def rounds(self, done: int, total: int) -> None:
        """Shows how far the whole run is."""
        self.rounds_done = (done, total)
        if self._rounds is None:
            self._rounds = self._progress.add_task("rounds", total=total, completed=done, count="", note="")
        self._progress.update(self._rounds, completed=done, count=f"{done}/{total}")

    @property
    def stages(self) -> list[Stage]:
        """Returns the stages that are at work."""
        return [stage for stage in self._stages if stage.worked]

    @property
    def at_work(self) -> str:
        """Says what is at work now, in one line; nothing if nobody knows of anything."""
        done, total = self.rounds_done
        lines = [*(stage.line for stage in self.stages), *(doing.line for doing in self._doing)]
        return " | ".join(lines) or (f"round {done} of {total - 1}" if total > 1 else "")

    @contextlib.contextmanager
    def stage(
        self,
        round: int | None,
        name: str,
        total: float | None = None,
        shards: int = 1,
        unit: str = "",
        *,
        stays: bool = True,
    ) -> Iterator[Stage]:
        """Shows a stage, of a round or of something else, while the block works, and then as one line with its time.

        Args:
            stays: whether there is that last line.
        """
        tell = (lambda _line: None) if self._console.is_terminal else self.say
        stage = Stage(self._progress, round, name, total, shards, unit, tell)
        self._stages.append(stage)
        try:
            yield stage
        finally:
            self._stages.remove(stage)
            stage.end()
        if stage.worked and stays:
            self.say(stage.last_line())

    def _break_silence(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            if time.monotonic() - self._said >= SILENT_SECONDS and not self._resting and (line := self.at_work):
                self.say(line)


@contextlib.contextmanager
def doing(text: str) -> Iterator[None]:
    """Shows a line on standard error that says what a command is doing, until the block ends."""
    with Display() as display, display.doing(text):
        yield
