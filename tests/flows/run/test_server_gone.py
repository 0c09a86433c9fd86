"""A temporary Prefect server that is gone in the middle of a run: a real one, behind a forwarder that is closed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import psutil
import pytest

import flows.prefect_api  # noqa: F401  before Prefect
from flows.errors import InterruptedRunError, ServerError
from flows.prefect_api.control import Control, Stop
from flows.prefect_api.server import prefect_api, using
from flows.prefect_api.server_record import HOME_VARIABLE
from flows.round.context import enter
from flows.run import execute
from pipeline.errors import JudgeError
from storage.log.store import Store
from support.finished_run import finished_run

SECONDS = 20  # retries alone took 62 s for each call, and there were several


def test_a_run_goes_on_and_ends_soon_without_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done, failed, stopped by a person, and not begun: each ends as it would with a server, and within seconds."""
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

    async def in_order(url: str) -> None:
        for work, error in ((done, None), (fails, JudgeError), (stopped, InterruptedRunError)):
            async with forwarding(url) as (to, close):
                closing.append(close)
                with using(to), pytest.raises(error) if error else contextlib.nullcontext():
                    assert await flow(work) < SECONDS

    async def gone() -> None:
        await closing[-1]()

    async def done(_control: Control) -> None:
        await gone()

    async def fails(_control: Control) -> None:
        await gone()
        raise JudgeError("no more room")

    async def stopped(control: Control) -> None:
        await gone()
        control.ask(Stop(False, "SIGTERM"))
        await asyncio.sleep(60)

    async def never(_control: Control) -> None:
        raise AssertionError("it began")

    closing: list[Callable[[], Awaitable[None]]] = []

    async def all_ways() -> None:
        async with prefect_api(said.append) as url:
            await in_order(url)
            (server,) = [one for one in psutil.Process().children() if "flows.prefect_api.server" in one.cmdline()]
            server.kill()
            await asyncio.sleep(1)
            with pytest.raises(ServerError, match=r"does not answer .*'rondo resume small' goes on"):
                await flow(never)

    asyncio.run(all_ways())
    assert said == [
        "the Prefect server was not told of the end of run 'small' (All connection attempts failed)",
        "the Prefect server was not told of the end of run 'small' (All connection attempts failed)",
        "the temporary Prefect server has ended (exit status -9); the run goes on without it",
    ]


@contextlib.asynccontextmanager
async def forwarding(url: str) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Another address of a server, and a function after which nothing answers there."""
    parts, ends = httpx.URL(url), list[asyncio.StreamWriter]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while some := await reader.read(65536):
                writer.write(some)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(parts.host, parts.port)
        ends.extend((writer, forth))
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    async def close() -> None:
        listening.close()
        for end in ends:
            end.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/api", close
    finally:
        await close()
