"""Replicas of a worker behind the interface of one: engines on the devices of this machine, or on a Ray cluster.

Calls wait in one queue, and each replica takes the next when it has room: a slow one takes fewer, one that joins takes
its first at once. If a replica dies, its calls in progress fail with WorkerDiedError, and whoever asked makes them
again (see ``flows/round/shard_steps.py``), so that another replica does them. The pool itself gives no call to a second
replica, and a shard that kills its workers is counted in one place.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from flows.errors import WorkerDiedError, WorkerError
from flows.remote.calls import Progress
from flows.remote.worker_main import WORKERS

FAILED_STARTS = 3  # in a row, after which a replica is given up


class Replica(Protocol):
    """One replica in all its lives.

    Attributes:
        node: where it is, for people.
        alive: whether it has joined and is not known to have died since.
    """

    node: str
    alive: bool

    async def join(self) -> Mapping[str, str]:
        """Waits until it is there, also again, and its worker is constructed; returns the versions of its software.

        Raises:
            RondoError, StoreError: what the worker raised.
            WorkerDiedError: it has died.
        """
        ...

    async def ask(self, request: Mapping[str, Any], on_progress: Progress | None) -> Any:
        """Returns the answer of one method of its worker; raises as ``join`` does."""
        ...

    async def listen(self) -> None:
        """Returns, or raises WorkerDiedError, when it has died."""
        ...

    async def end(self) -> None:
        """Ends it for good."""
        ...


@dataclass
class Call:
    """A request that one of the replicas is to answer."""

    request: dict[str, Any]
    on_progress: Progress | None
    answer: "asyncio.Future[Any]"


class ReplicaPool(ABC):
    """A worker that several replicas do the work of.

    Args:
        kind: a name in ``flows.remote.worker_main.WORKERS``.
        most: how many replicas there may be.
        each: calls that one replica takes at once.
        say: tells people who joins and leaves.
    """

    def __init__(self, kind: str, most: int, each: int, say: Callable[[str], None]) -> None:
        self.kind = kind
        self._most, self._each, self._say = most, each, say
        self._queue: asyncio.Queue[Call] = asyncio.Queue()
        self._replicas: set[Replica] = set()
        self._someone = asyncio.Event()  # a replica is there, or none will come
        self._places: dict[int, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self._opened = False
        self._numbers = count(1)
        self._refused: Exception | None = None
        self._stopped = False

    @abstractmethod
    def _make(self, place: int) -> Replica:
        """Makes the replica of a place; it is started by ``join``."""

    async def _connect(self) -> None:
        """Prepares for the first replica."""
        return

    async def _disconnect(self) -> None:
        """Ends what `_connect` has prepared; all replicas are gone."""
        return

    async def _explain(self, error: Exception) -> Exception:
        """Returns what is behind an error of a replica; the error itself if nothing is."""
        return error

    def _check(self, _software: Mapping[str, str]) -> None:
        """Refuses a replica whose software is not that of the others; those of one machine have all the same."""
        return

    @property
    def capacity(self) -> int:
        """Says how many calls the pool takes at once: as many as all replicas do together once they are there."""
        return self._each * self._most

    @property
    def replicas(self) -> int:
        """Says how many replicas are there."""
        return len(self._replicas)

    async def start(self) -> None:
        """Starts the replicas, and waits for the first.

        Raises:
            RondoError, StoreError: what each replica raised when it started.
        """
        await self._open()
        await self._first()

    async def call(
        self, method: str, *, on_progress: Progress | None = None, alone: bool = False, **arguments: Any
    ) -> Any:
        """Returns the answer of one method, by whichever replica is free; of one for all replicas, the largest metrics.

        Raises:
            RondoError, StoreError: what the worker raised, with its own class and sentence.
            WorkerDiedError: the replica ended before it answered.
            ClusterError: there is no replica.
        """
        await self._open()
        request = {"id": next(self._numbers), "method": method, "arguments": arguments, "alone": alone}
        if getattr(getattr(WORKERS[self.kind], method, None), "everywhere", False):
            return await self._ask_all(request, on_progress)
        call = Call(request, on_progress, asyncio.get_running_loop().create_future())
        if self._refused is not None:
            raise self._refused
        self._queue.put_nowait(call)
        return await call.answer

    async def stop(self) -> None:
        """Ends the replicas, whatever they are doing."""
        self._stopped = True
        async with self._opening:
            if not self._opened:
                return
            tasks = list(self._places.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._opened = False
            self._fail_waiting(WorkerError(f"the {self.kind} was stopped"))
            await self._disconnect()

    async def _open(self) -> None:
        async with self._opening:
            if self._stopped:
                raise WorkerError(f"the {self.kind} was asked after it had been stopped")
            if not self._opened:
                await self._connect()
                self._opened = True
                self._places = {place: asyncio.create_task(self._keep(place)) for place in range(self._most)}

    async def _first(self) -> None:
        while not self._replicas:
            if self._refused is not None:
                raise self._refused
            await self._someone.wait()
            self._someone.clear()

    async def _ask_all(self, request: Mapping[str, Any], on_progress: Progress | None) -> Any:
        """Asks all replicas that are there; returns the answer that they agree on, or the largest of each metric.

        One that dies meanwhile is left out, as is one that comes later: each takes the policy of what it samples. None
        is the answer if it is that of one: what it cannot do, they cannot do together.
        """
        await self._first()
        asked = [replica.ask(request, on_progress) for replica in self._replicas]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        wrong = [error for error in failed if not isinstance(error, WorkerDiedError)]
        if wrong or len(failed) == len(answers):
            raise (wrong or failed)[0]
        given = [answer for answer in answers if not isinstance(answer, BaseException)]
        if None in given or all(answer == given[0] for answer in given):
            return None if None in given else given[0]
        return {name: max(each[name] for each in given) for name in given[0]}

    async def _keep(self, place: int) -> None:
        """Has a replica work in each of its lives, until it fails to start time after time."""
        replica, failed = self._make(place), 0
        try:
            while True:
                try:
                    self._check(await replica.join())
                except WorkerDiedError:
                    failed += 1
                    if failed == FAILED_STARTS:
                        raise
                    continue
                failed = 0
                await self._serve(replica)
                self._say(f"{self.kind}: the replica on {replica.node} has gone; {self.replicas} are left")
        except Exception as error:
            self._give_up(place, await self._explain(error))
        finally:
            await replica.end()

    async def _serve(self, replica: Replica) -> None:
        """Lets a replica work until it dies."""
        self._replicas.add(replica)
        self._someone.set()
        self._say(f"{self.kind}: a replica has joined on {replica.node}; there are {self.replicas}")
        parts = [asyncio.create_task(self._pull(replica)) for _ in range(self._each)]
        parts.append(asyncio.create_task(replica.listen()))
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._replicas.discard(replica)
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _pull(self, replica: Replica) -> None:
        """Does one call after the other until the replica dies."""
        while replica.alive:
            call = await self._queue.get()
            if call.answer.done():  # whoever asked has gone
                continue
            error: BaseException | None = None
            try:
                result = await replica.ask(call.request, call.on_progress)
            except asyncio.CancelledError:
                error = WorkerDiedError(f"the replica of the {self.kind} on {replica.node} was given up in its work")
                raise
            except Exception as raised:
                error = raised  # also if the place is given up meanwhile
                error = await self._explain(raised)
            finally:
                if not call.answer.done():
                    call.answer.set_result(result) if error is None else call.answer.set_exception(error)

    def _give_up(self, place: int, error: Exception) -> None:
        del self._places[place]
        if self._places:
            self._say(f"{self.kind}: a replica cannot start, and is not asked for again: {error}")
        else:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        self._refused = error
        self._someone.set()
        self._fail_waiting(error)

    def _fail_waiting(self, error: Exception) -> None:
        while not self._queue.empty():
            call = self._queue.get_nowait()
            if not call.answer.done():
                call.answer.set_exception(error)
