"""A run that is stopped outside of its flow: while the judges are loaded, or when all is done."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flows.errors import InterruptedRunError, PausedRunError
from flows.prefect_api.control import Control, Stop
from storage.log.run import Run
from storage.log.store import Store

Work = Callable[[Control], Awaitable[None]]


def execute(run: Run, work: Work) -> None:
    async def listened() -> None:
        with run.writer() as writer:
            control = Control(run, writer, None, watched=False)
            with control.listening():
                await work(control)

    asyncio.run(listened())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Store.open(tmp_path).create_run("r", {})


def test_a_pause_before_the_flow_begins_is_kept(run: Run) -> None:
    """What the command says at its end, that scheduled runs leave it alone, has to be so."""

    async def paused(control: Control) -> None:
        control.ask(Stop(True, "rondo pause"))
        await asyncio.sleep(60)

    with pytest.raises(PausedRunError, match="scheduled runs leave it alone"):
        execute(run, paused)
    run.refresh()
    assert run.pause is not None
    assert (run.pause["by"], run.pause["flow_run"]) == ("rondo pause", None)


def test_a_signal_of_the_last_moment_ends_the_command(run: Run) -> None:
    """The event loop has not heard of it. The time in which the process is to end runs all the same."""

    async def done(_control: Control) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="interrupted by SIGTERM"):
        execute(run, done)
