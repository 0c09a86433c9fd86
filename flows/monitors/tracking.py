"""A run's metrics for TensorBoard and Weights & Biases, while it goes on.

Optimizer steps are numbered over the whole run, from 0, so that curves continue from round to round. What a killed
process tracked is tracked again when the run is resumed. TensorBoard then replaces what it had under the same numbers,
and Weights & Biases drops what comes again, so no curve doubles back. The flow's process tracks the steps, which the
trainer tells it; no worker knows of this module.
"""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.config.monitors import TrackingConfig
from pipeline.errors import ConfigError
from pipeline.records import content_id
from storage.log.run import Run

Series = Literal["step", "round"]

_LIBRARIES = {"tensorboard": "tensorboard", "wandb_project": "wandb"}
_PLACES = {"step", "epoch", "round"}
"""Metrics that say where a row stands: they are axes rather than curves."""


class Sink(Protocol):
    """Takes rows of metrics."""

    def write(self, series: Series, number: int, row: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of the optimizer step or round of this number; ``row`` counts both kinds together."""

    def close(self) -> None:
        """Ends the writing: no row comes after."""


class Tracker:
    """Numbers the steps of a run and hands all metrics to its sinks."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def step(self, round: int, steps_before: int, metrics: Mapping[str, Any]) -> None:
        """Hands on one optimizer step of a round; ``steps_before`` counts those of all earlier rounds."""
        number = steps_before + int(metrics["step"])
        # Before this row are the steps before it and the metrics of the rounds before this one, 0 among them.
        self._write("step", number, number + round, {**metrics, "round": round})

    def round(self, round: int, steps: int, metrics: Mapping[str, Any]) -> None:
        """Hands on the metrics of a round, after so many steps of the run."""
        self._write("round", round, steps + round, metrics)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, series: Series, number: int, row: int, metrics: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in _numbers(metrics).items() if name not in _PLACES}
        for sink in self._sinks:
            sink.write(series, number, row, numbers)


class TensorBoardSink:
    """Event files in ``directory/step`` and ``directory/round``, each with its own numbers.

    Each session writes files of its own. The first row of a session, and one whose number is not above the last, begins
    with TensorBoard's mark of a restart: what stood at that number and above no longer counts. The writer is
    TensorBoard's own: PyTorch's SummaryWriter wraps the same one, and would load PyTorch into the flow's process.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        try:
            self._writers = {series: EventFileWriter(str(directory / series)) for series in ("step", "round")}
        except OSError as error:
            raise ConfigError(
                f"tracking.tensorboard '{directory}' cannot be written ({error.strerror}): give another directory"
            ) from error
        self._last: dict[Series, int] = {}

    def write(self, series: Series, number: int, row: int, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        del row
        writer, now = self._writers[series], time.time()
        if number <= self._last.get(series, number):
            restart = SessionLog(status=SessionLog.START)
            writer.add_event(Event(wall_time=now, step=number, session_log=restart))
        values = [Summary.Value(tag=f"{series}/{name}", simple_value=value) for name, value in metrics.items()]
        writer.add_event(Event(wall_time=now, step=number, summary=Summary(value=values)))
        writer.flush()  # a killed process leaves what it had
        self._last[series] = number

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandbSink:
    """One run of Weights & Biases, continued by each session; it drops rows that it has.

    Only metrics, the recipe's name and its seed are sent: no arguments, no source, no environment and no output.
    Offline sessions cannot be asked what they have, so steps that were tracked twice stay twice when they are synced.
    """

    def __init__(self, project: str, run: Run) -> None:
        import wandb

        private = wandb.Settings(
            console="off", disable_code=True, disable_git=True, save_code=False, x_disable_meta=True,
            x_disable_stats=True,
        )  # fmt: skip
        recipe = run.header["recipe"]
        self._run = wandb.init(
            project=project,
            id=_identity(run),
            name=run.name,
            resume="allow",
            config={"recipe": recipe["name"], "seed": recipe["seed"]},
            settings=private,
        )
        for series in ("step", "round"):
            self._run.define_metric(f"{series}/*", step_metric=series)

    def write(self, series: Series, number: int, row: int, metrics: Mapping[str, float]) -> None:
        self._run.log({series: number, **{f"{series}/{name}": value for name, value in metrics.items()}}, step=row)

    def close(self) -> None:
        self._run.finish()


def check_tracking(config: TrackingConfig) -> None:
    """Raises ConfigError if the recipe asks for a library that is not installed."""
    for field, library in _LIBRARIES.items():
        if getattr(config, field) is not None and find_spec(library) is None:
            raise ConfigError(
                f"tracking.{field} needs {library}, which is not installed: pip install 'rondo[{library}]', or leave "
                f"tracking.{field} out"
            )


def open_tracker(config: TrackingConfig, run: Run) -> Tracker:
    """Opens the sinks that a recipe names; without any, tracking does nothing.

    Raises:
        ConfigError: a library is missing, or a sink cannot be opened.
    """
    check_tracking(config)
    sinks: list[Sink] = []
    if config.tensorboard is not None:
        sinks.append(TensorBoardSink(Path(config.tensorboard) / run.name))
    if config.wandb_project is not None:
        sinks.append(WandbSink(config.wandb_project, run))
    return Tracker(*sinks)


def _identity(run: Run) -> str:
    """Returns an id that all sessions of a run share, and that another run of that name does not have."""
    return content_id([run.name, run.created])


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers among the metrics; those of a group are named ``group/name``."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found
