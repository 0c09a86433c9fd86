"""A temporary Prefect server that dies in the middle of a run: a real one, which is killed."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

import flows.prefect_api  # noqa: F401  before Prefect
from flows.errors import InterruptedRunError, ServerError
from flows.prefect_api.control import Control, Stop
from flows.prefect_api.server import prefect_api
from flows.prefect_api.server_record import HOME_VARIABLE
from flows.round.context import enter
from flows.run import execute
from pipeline.errors import JudgeError
from storage.log.store import Store
from support.finished_run import finished_run

AT_ONCE = 8  # one health check, which has 5 s; a flow that begins without its server took 511 s to end
SECONDS = 20  # retries alone took 62 s for each call, and there were several


@pytest.mark.nightly  # it starts four servers
def test_a_run_goes_on_and_ends_soon_without_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done, failed, stopped by a person, beside a server that hangs, and not begun: each ends within seconds."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    run, said = finished_run(Store.open(tmp_path), rounds=1), list[str]()

    async def flow(work: Callable[[Control], Awaitable[None]]) -> float:
        control = Control(run, cast(Any, None), None, watched=False)
        display = SimpleNamespace(say=said.append)
        context = cast(Any, SimpleNamespace(name="small", goal=1, control=control, display=display))
        monkeypatch.setattr(execute, "_missing_rounds", lambda _context: work(control))
        enter(context)
        began = time.monotonic()
        with control.listening():
            await execute._in_a_flow_of_its_own(context)
        return time.monotonic() - began

    def server() -> psutil.Process:
        (found,) = [one for one in psutil.Process().children() if "flows.prefect_api.server" in one.cmdline()]
        return found

    async def kill() -> None:
        server().kill()
        await asyncio.sleep(1)

    async def done(_control: Control) -> None:
        await kill()

    async def fails(_control: Control) -> None:
        await kill()
        raise JudgeError("no more room")

    async def stopped(control: Control) -> None:
        await kill()
        control.ask(Stop(False, "SIGTERM"))
        await asyncio.sleep(60)

    async def frozen(control: Control) -> None:
        server().suspend()  # it neither answers nor ends by itself
        control.ask(Stop(False, "SIGTERM"))
        await asyncio.sleep(60)

    async def never(_control: Control) -> None:
        raise AssertionError("it began")

    async def all_ways() -> None:
        ways = (done, None), (fails, JudgeError), (stopped, InterruptedRunError), (frozen, InterruptedRunError)
        for work, error in ways:
            async with prefect_api(said.append):
                began = time.monotonic()
                with pytest.raises(error) if error else contextlib.nullcontext():
                    await flow(work)
                assert time.monotonic() - began < SECONDS
                if work is stopped:
                    began = time.monotonic()
                    with pytest.raises(ServerError, match="does not answer: 'rondo resume small' goes on"):
                        await flow(never)
                    assert time.monotonic() - began < AT_ONCE
                ending = time.monotonic()
            assert time.monotonic() - ending < AT_ONCE

    asyncio.run(all_ways())
    assert said[:2] == [
        "the temporary Prefect server has ended (exit status -9); the run goes on without it",
        "the Prefect server was not told of the end of run 'small' (All connection attempts failed)",
    ]
