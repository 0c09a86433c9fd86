"""How a run is stopped while it goes on: cancelled or paused, by a signal or in Prefect, and always in order.

Whoever asks, the same happens: the task that executes the run is cancelled, its workers end, its session is closed,
and the flow run ends as Cancelled or stays Suspended. Prefect alone would not end it. Of a flow run that no runner of
its own has started, it does not notice Cancelling at all, and Suspended only when the next task begins.

    SIGINT            cancels: Ctrl-C
    SIGTERM           cancels: a service manager's, ``rondo cancel``'s, or that of Prefect's runner
    SIGUSR1           pauses: ``rondo pause``
    Prefect's state   Cancelling or Paused (the page's buttons Cancel and Suspend): looked for every few seconds,
                      if the server outlives the command

From then on Prefect's server is waited for within the bounds of ``flows/host/sure_end.py``, and no longer.

A round that waits for people's labels stops the run in the same way. Nothing has failed then: its flow runs end as
AwaitingLabels, a kind of Completed.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, Pause, TerminationSignal
from prefect.logging import get_logger
from prefect.states import Cancelled

from flows.errors import InterruptedRunError, PausedRunError, WaitingForLabelsError
from flows.host.progress import Display
from flows.host.sure_end import OTHERS_SECONDS, SureEnd
from flows.prefect_api.flow_runs import API_ERRORS, SESSION, awaiting_labels, in_states, session_tag, suspend
from flows.prefect_api.limits import Turn
from flows.prefect_api.server import Say, give_up_soon
from pipeline.errors import RondoError
from storage.log.lease import utc_now
from storage.log.run import Run
from storage.log.writer import Writer

LOOK_SECONDS = 2.0
PAUSE_SIGNAL = signal.SIGUSR1

_STOPPED = [StateType.CANCELLING, StateType.CANCELLED, StateType.PAUSED]
_ENDS = (asyncio.CancelledError, CancelledRun, Pause, TerminationSignal)


@dataclass(frozen=True)
class Stop:
    """That a run is to stop: whether it stays paused, and who asked, or which labels it waits for."""

    paused: bool
    by: str
    labels: str | None = None

    @property
    def message(self) -> str:
        """Says why the flow runs end."""
        return self.labels or f"{'paused' if self.paused else 'interrupted'} by {self.by}"

    @property
    def state(self) -> State[Any]:
        """Returns the state in which the flow runs end."""
        if self.labels is not None:
            return awaiting_labels(self.labels)
        return Cancelled(message=self.message)


class Control:
    """Stops the task that made it, when somebody asks for that.

    Args:
        run: the run that is executed.
        writer: its writer, which keeps a pause.
        before: what the run's pause said before this writer ended it.
        watched: whether people can reach the flow run in Prefect, in a server that outlives the command.
        say: takes a line for people; by default it goes to standard error.

    Attributes:
        turn: what this run holds while others wait.
        sure_end: sees to it that a command ends once somebody has asked for that.
        flow_run: the flow run that people see as the run, once there is one.
        waits_for_people: whether it is Paused, or has stopped, for people's labels, and not because somebody asked.
        ending: what a command's flow ends within, see ``give_up_soon``; None in the flow of a schedule.
        ended: whether the work within the flow has ended: by itself, in order, or with ``failure``.
        untold: why Prefect was not told of the end, if it was not.
    """

    def __init__(
        self,
        run: Run,
        writer: Writer,
        before: dict[str, Any] | None,
        *,
        watched: bool,
        turn: Turn | None = None,
        say: Say | None = None,
    ) -> None:
        self._name, self._writer, self._before, self.watched = run.name, writer, before, watched
        self.turn = turn or Turn()
        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        self._stop: Stop | None = None
        self._heard: Stop | None = None
        self._say = say or Display().say
        self.sure_end = SureEnd(self._close_at_last)
        self.flow_run: UUID | None = None
        self.waits_for_people = False
        self.ending: contextlib.ExitStack | None = None
        self.ended = False
        self.failure: Exception | None = None
        self.untold: str | None = None

    @property
    def asked(self) -> bool:
        """Says whether somebody has asked the run to stop."""
        return self._stop is not None

    def ask(self, stop: Stop) -> None:
        """Begins to stop the run; what is asked after that changes nothing."""
        if self._stop is None and self._task is not None:
            self._stop = stop
            self._task.cancel()
            if stop.labels is None:
                self.sure_end.ask()

    def with_prefect(self) -> contextlib.AbstractContextManager[None]:
        """Has Prefect's part of the block, all but the run's own work, end soon once the run is to stop."""
        return self.sure_end.waiting_for_others(lambda: self._loop.call_soon_threadsafe(self._cut))

    def _cut(self) -> None:
        """Cancels anew: Prefect shields what it does at the end of a flow from the first time, not from the next."""
        if self.sure_end.waits_for_others and self._task is not None:
            self.untold = f"no answer within {OTHERS_SECONDS:.0f} s"
            self._task.cancel()

    def _close_at_last(self) -> None:
        stop = self._stop or self._heard
        assert stop is not None
        self._say(f"{self._end_by(stop)}; Prefect has not let go of the run, and may show it as running")
        self._writer.close("SureEnd")

    async def await_labels(self, what: str) -> NoReturn:
        """Stops the run from within, until people have labelled.

        Args:
            what: which labels, and how they come; what the command says at its end.
        """
        self.waits_for_people = True
        self.ask(Stop(False, "the round", what))
        while True:  # the task that executes the run is this one, or waits for it
            await asyncio.sleep(LOOK_SECONDS)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hears signals while the block runs.

        Raises:
            InterruptedRunError, PausedRunError, WaitingForLabelsError: the block was stopped.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        try:
            with self.sure_end.watching():
                yield
        except _ENDS as end:
            raise self._end_by(self._ended(end)) from None
        else:
            # In a flow run that goes on, or that for Prefect is completed; or at the last moment, unheard by the loop.
            if (stop := self._stop or self._heard) is not None:
                raise self._end_by(stop)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, PAUSE_SIGNAL):
                self._loop.remove_signal_handler(number)
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.signal(PAUSE_SIGNAL, signal.SIG_IGN)  # it may come late, and would kill

    def listen(self) -> None:
        """Takes the signals; a flow calls this again when it begins, as Prefect has then taken SIGTERM for itself."""
        self._hear(signal.SIGTERM, Stop(False, "SIGTERM"))
        self._hear(PAUSE_SIGNAL, Stop(True, "rondo pause"))
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for a schedule, which ends this process
            self._hear(signal.SIGINT, Stop(False, "Ctrl-C"))

    def _hear(self, number: signal.Signals, stop: Stop) -> None:
        """Stops the run at a signal. The time runs at once, also if something holds up the loop."""

        def heard(*_: object) -> None:
            self._heard = self._heard or stop
            self.sure_end.ask()

        self._loop.add_signal_handler(number, self.ask, stop)
        signal.signal(number, heard)  # the loop hears of it all the same

    async def in_order(self, work: Awaitable[None]) -> State[Any] | None:
        """Does the work within the run's flow, and returns how the flow run is to end if the work is stopped.

        Raises:
            Pause: the flow run is suspended; Prefect expects this exception.
        """
        self.listen()
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        self.flow_run = own = context.flow_run.id
        watch = asyncio.create_task(self._watch(own)) if self.watched else None
        try:
            with self.sure_end.own_work():
                await work
        except (asyncio.CancelledError, Pause) as end:
            stop = self._ended(end)
            if self._lost_a_slot(end):
                raise
            if isinstance(end, asyncio.CancelledError) and self._task is not None:
                self._task.uncancel()
        except Exception as failure:
            self.failure = failure
            raise
        else:
            return None
        finally:
            if watch is not None:
                watch.cancel()
            self.ended = True
            if self.ending is not None:
                await give_up_soon(self.ending)
        if stop.paused:
            raise Pause(state=await suspend(own, stop.message))
        return stop.state

    def _end_by(self, stop: Stop) -> RondoError:
        """Returns the error that the command ends with; a pause is kept, whenever it came."""
        if stop.labels is not None:
            return WaitingForLabelsError(stop.labels)
        if stop.paused:
            self._writer.pause({"by": stop.by, "since": utc_now(), "flow_run": self.flow_run and str(self.flow_run)})
            return PausedRunError(
                f"paused by {stop.by}: what is committed stays, and scheduled runs leave it alone until "
                f"'rondo resume {self._name}'"
            )
        return InterruptedRunError(
            f"interrupted by {stop.by}: what is committed stays, and 'rondo resume {self._name}' goes on"
        )

    def _ended(self, end: BaseException) -> Stop:
        """Returns who asked: it may be Ctrl-C, or Prefect, which suspends by itself when a task begins."""
        if self._stop is None:
            by_prefect = isinstance(end, Pause) or self._lost_a_slot(end)
            by_signal = "SIGTERM" if isinstance(end, TerminationSignal) else "Ctrl-C"
            self._stop = Stop(isinstance(end, Pause), "Prefect" if by_prefect else by_signal)
        return self._stop

    def _lost_a_slot(self, end: BaseException) -> bool:
        """Says whether Prefect cancels, by a scope of its own that says so, as when a concurrency slot is lost."""
        return isinstance(end, asyncio.CancelledError) and bool(end.args)

    async def _watch(self, own: UUID) -> None:
        log, silent = get_logger("rondo"), False
        this = FlowRunFilter(id=FlowRunFilterId(any_=[own]))
        async with get_client() as client:
            with contextlib.suppress(*API_ERRORS):
                await self._tag(client, own)
                await self._close_paused(client, own)
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                try:
                    found = await in_states(client, _STOPPED, this)
                except API_ERRORS as error:
                    if not silent:
                        log.warning("Prefect does not say whether the run is to stop (%s); asking on", error)
                    silent = True
                    continue
                for run in found:
                    paused = run.state_type == StateType.PAUSED
                    if not (paused and self.waits_for_people):
                        self.ask(Stop(paused, "Prefect"))
                        return

    async def _tag(self, client: PrefectClient, own: UUID) -> None:
        """Tags the flow run with its run and with the session of the store; a resumed one has had another session."""
        kept = [tag for tag in (await client.read_flow_run(own)).tags if not tag.startswith(SESSION)]
        tags = {*kept, f"run:{self._name}", session_tag(self._writer.session)}
        await client.update_flow_run(own, tags=sorted(tags))

    async def _close_paused(self, client: PrefectClient, own: UUID) -> None:
        """Cancels the flow run that was paused, if another now goes on for it: it waits for nothing any more."""
        paused = (self._before or {}).get("flow_run")
        if paused is None or paused == str(own):
            return
        found = await in_states(client, [StateType.PAUSED], FlowRunFilter(id=FlowRunFilterId(any_=[UUID(paused)])))
        for run in found:
            gone_on: State[Any] = Cancelled(message="another flow run has gone on for this one")
            await client.set_flow_run_state(run.id, gone_on, force=True)
