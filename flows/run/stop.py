"""``rondo cancel`` and ``rondo pause``: find the process that executes a run, have it end in order, and wait for that.

A process on this host gets a signal. One on another host, or in a container, is asked through Prefect, whose flow run
has the id of the store's session as a tag. How the process ends is in ``flows/prefect_api/control.py``.
"""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from flows.errors import RunHangsError
from flows.host.processes import lives
from flows.registry.catalog import existing_store
from pipeline.errors import ConfigError
from storage.log.lease import describe_holder, describe_place, holder, utc_now
from storage.log.manifest import Entry
from storage.log.run import Run

_ASK_SECONDS = 0.2
# A run that has just begun shows up in Prefect with its session's tag within this time.
_SHOWN_SECONDS = 20.0


def cancel(name: str, root: str, patience: float) -> str:
    """Ends a run if it is executed; returns a sentence on what was done.

    Args:
        patience: how long to wait for the end, in seconds.

    Raises:
        ConfigError: the run is written by a command that executes no rounds, or cannot be reached.
        RunHangsError: it was asked to end, and still runs.
    """
    run = existing_store(root).run(name)
    session = _executed(run)
    if session is None:
        return f"run '{name}' is not running: there is nothing to cancel"
    return f"run '{name}' is cancelled: {_end(run, session, patience, pause=False)}; 'rondo resume {name}' goes on"


def pause(name: str, root: str, patience: float) -> str:
    """Ends a run if it is executed, as :func:`cancel` does, and holds schedules back until it is resumed."""
    run = existing_store(root).run(name)
    session, goes_on = _executed(run), f"schedules leave it alone until 'rondo resume {name}'"
    if session is not None:
        return f"run '{name}' is paused: {_end(run, session, patience, pause=True)}; {goes_on}"
    if run.pause is not None:
        return f"run '{name}' is paused since {run.pause['since']} already: {goes_on}"
    with run.writer() as writer:
        writer.pause({"by": "rondo pause", "since": utc_now(), "flow_run": None})
    return f"run '{name}' is not running, and paused from now on: {goes_on}"


def _executed(run: Run) -> Entry | None:
    """Returns the session in which the run is executed now; None if no process executes it.

    Raises:
        ConfigError: a command that executes no rounds writes it.
    """
    session = run.session
    if run.state == "stopped" or session is None:
        return None
    if "rounds" not in session.meta:
        raise ConfigError(
            f"run '{run.name}' is written by {describe_holder(session)}, which executes no rounds: wait for it"
        )
    return session


def _end(run: Run, session: Entry, patience: float, *, pause: bool) -> str:
    here = holder(session) == "alive"
    where = describe_place(session)
    started = time.monotonic()
    if here:
        gone = _signal(session.meta["pid"], where, pause=pause)
    else:
        _ask_prefect(session, where, pause=pause)

        def gone() -> bool:
            run.refresh()
            return run.state == "stopped" or run.session != session

    while not gone():
        if time.monotonic() - started > patience:
            remedy = f"'kill -9 {session.meta['pid']}'" + ("" if here else " there")
            raise RunHangsError(
                f"{where} was asked to end run '{run.name}' and has not within {patience:.0f} s: {remedy} ends it, and "
                f"'rondo resume {run.name}' then goes on from what is committed"
            )
        time.sleep(_ASK_SECONDS)
    how = "with its workers " if here else "through Prefect "
    return f"{where} has ended {how}after {time.monotonic() - started:.1f} s"


def _signal(pid: int, where: str, *, pause: bool) -> Callable[[], bool]:
    """Signals the process; returns whether it and all of its children are gone."""
    from flows.prefect_api.control import PAUSE_SIGNAL

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        process.send_signal(PAUSE_SIGNAL if pause else signal.SIGTERM)
    except psutil.AccessDenied:
        raise ConfigError(f"{where} is another user's: only that user can end it") from None
    except psutil.NoSuchProcess:
        return lambda: True
    return lambda: not any(map(lives, family))


def _ask_prefect(session: Entry, where: str, *, pause: bool) -> None:
    import flows.prefect_api  # noqa: F401  before Prefect
    from flows.prefect_api.server import has_background_server

    if not has_background_server():
        raise ConfigError(
            f"the run is written by {where}: run this command there, or set PREFECT_API_URL to the Prefect server that "
            "shows the run"
        )
    began = time.monotonic()
    while not asyncio.run(_set_state(session, pause=pause)):
        if time.monotonic() - began > _SHOWN_SECONDS:
            raise ConfigError(
                f"the run is written by {where}, and Prefect shows no flow run of it: run this command there"
            )
        time.sleep(_ASK_SECONDS)


async def _set_state(session: Entry, *, pause: bool) -> bool:
    """Sets the state of the flow run as the UI's buttons do; returns whether there was one."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.client.schemas.objects import State
    from prefect.states import Cancelling, Suspended

    from flows.prefect_api.flow_runs import session_tag
    from flows.prefect_api.server import prefect_api

    async with prefect_api(), get_client() as client:
        tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[session_tag(session.session)]))
        found = [
            run for run in await client.read_flow_runs(flow_run_filter=tagged) if run.state and not run.state.is_final()
        ]
        for run in found:
            state: State[Any] = Suspended(message="rondo pause") if pause else Cancelling(message="rondo cancel")
            await client.set_flow_run_state(run.id, state, force=True)
        return bool(found)
