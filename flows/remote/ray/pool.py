"""Replicas of a worker on a Ray cluster, behind the interface of one worker process.

Calls wait in one queue, and each replica takes the next when it has room: a slow one takes fewer, one that joins takes
its first at once. If a replica or its node dies, its calls in progress fail with WorkerDiedError, and whoever asked
makes them again (see ``flows/round/shard_steps.py``), so that another replica does them. The pool itself gives no call
to a second replica, and a shard that kills its workers is counted in one place. So Ray's ``max_task_retries`` is for
none of these calls; its ``max_restarts`` starts a replica that died again when a node has room. Ray's ActorPool gives
an actor one task at a time, and gives further ones to an actor that has died.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from flows.errors import ClusterError, WorkerDiedError, WorkerError
from flows.host.versions import packages
from flows.remote.calls import Progress
from flows.remote.ray.cluster import RayCluster
from flows.remote.ray.replica import NEWS_SECONDS, RemoteReplica
from flows.remote.worker_main import WORKERS
from pipeline.config import ReplicasConfig

FAILED_STARTS = 3  # in a row, after which a replica is given up


@dataclass
class _Call:
    request: dict[str, Any]
    on_progress: Progress | None
    answer: "asyncio.Future[Any]"


class RayPool:
    """A worker that several replicas do the work of.

    Args:
        kind: a name in ``flows.remote.worker_main.WORKERS``.
        arguments: what the worker's constructor takes, without ``scratch``; must be JSON.
        created: when the run was created, by which a node shows that it sees the same store.
        log: the local file that collects the ends of the replicas' logs if something fails.
        environment: variables of the replicas, secret ones among them.
        config: how many replicas, and what each needs.
        capacity: calls that one replica takes at once.
        cluster: where.
        say: tells people who joins and leaves.
    """

    def __init__(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        created: str,
        log: Path,
        environment: Mapping[str, str],
        config: ReplicasConfig,
        capacity: int,
        cluster: RayCluster,
        say: Callable[[str], None],
    ) -> None:
        self.kind = kind
        self._settings = json.dumps({
            "kind": kind, "arguments": dict(arguments), "created": created, "environment": dict(environment),
            "capacity": capacity,
        })  # fmt: skip
        self._log, self._config, self._each, self._cluster = log, config, capacity, cluster
        self._patience, self._say = cluster.patience, say
        self._queue: asyncio.Queue[_Call] = asyncio.Queue()
        self._replicas: set[RemoteReplica] = set()
        self._someone = asyncio.Event()  # a replica is there, or none will come
        self._places: dict[int, asyncio.Task[None]] = {}
        self._minding: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._numbers = count(1)
        self._refused: Exception | None = None
        self._software: dict[str, str] | None = None  # of the first replica
        self._stopped = False

    @property
    def capacity(self) -> int:
        """Says how many calls the pool takes at once: as many as all replicas do together once they are there."""
        return self._each * self._config.replicas

    @property
    def replicas(self) -> int:
        """Says how many replicas are there."""
        return len(self._replicas)

    async def start(self) -> None:
        """Asks Ray for the replicas, and waits for the first.

        Raises:
            ClusterError: there is no cluster, or it has no room for a single replica.
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
        call = _Call(request, on_progress, asyncio.get_running_loop().create_future())
        if self._refused is not None:
            raise self._refused
        self._queue.put_nowait(call)
        return await call.answer

    async def stop(self) -> None:
        """Ends the replicas, whatever they are doing, and disconnects."""
        self._stopped = True
        async with self._opening:
            if self._minding is None:
                return
            tasks = [self._minding, *self._places.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._minding = None
            self._fail_waiting(WorkerError(f"the {self.kind} was stopped"))
            await self._cluster.leave()

    async def _open(self) -> None:
        async with self._opening:
            if self._stopped:
                raise WorkerError(f"the {self.kind} was asked after it had been stopped")
            if self._minding is None:
                await self._cluster.join()
                self._minding = asyncio.create_task(self._mind())
                self._places = {place: asyncio.create_task(self._keep(place)) for place in range(self._config.replicas)}

    async def _first(self) -> None:
        while not self._replicas:
            if self._refused is not None:
                raise self._refused
            await self._someone.wait()
            self._someone.clear()

    async def _ask_all(self, request: Mapping[str, Any], on_progress: Progress | None) -> dict[str, float] | None:
        """Asks all replicas that are there, and returns the largest of each metric that they answer.

        One that dies meanwhile is left out, as is one that comes later: each takes the policy of what it samples.
        """
        await self._first()
        asked = [replica.ask(request, on_progress) for replica in self._replicas]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        wrong = [error for error in failed if not isinstance(error, WorkerDiedError)]
        if wrong or len(failed) == len(answers):
            raise (wrong or failed)[0]
        metrics = [answer for answer in answers if isinstance(answer, dict)]
        return {name: max(each[name] for each in metrics) for name in metrics[0]} if metrics else None

    async def _mind(self) -> None:
        """Gives up those who wait if there has been no replica for too long, or no head of the cluster."""
        clock = asyncio.get_running_loop().time
        since = clock()
        while True:
            await asyncio.sleep(min(NEWS_SECONDS, self._patience))
            if self._cluster.lost is not None:
                self._refuse(self._cluster.lost)
                for place in self._places.values():  # with what their replicas are doing, which nobody will learn
                    place.cancel()
                return
            if self._replicas:
                since = clock()
            elif clock() - since > self._patience:
                each = f"{self._config.cpus:g} CPUs and {self._config.gpus} GPUs"
                room = await asyncio.to_thread(self._cluster.room)
                self._refuse(ClusterError(
                    f"no replica of the {self.kind} was there for {self._patience:g} s (cluster.patience_seconds): one "
                    f"needs {each}, and the cluster has {room}; free or add a node, and resume the run"
                ))  # fmt: skip
                return

    async def _keep(self, place: int) -> None:
        """Has a replica work in each of its lives, until it fails to start time after time."""
        replica, failed = RemoteReplica(self.kind, place, self._settings, self._config, self._log), 0
        try:
            while True:
                try:
                    self._check_software(await replica.join())
                except WorkerDiedError:
                    failed += 1
                    if failed == FAILED_STARTS:
                        raise
                    continue
                failed = 0
                await self._serve(replica)
                self._say(f"{self.kind}: the replica on {replica.node} has gone; {self.replicas} are left")
        except Exception as error:
            self._give_up(place, await self._cluster.explain(error))
        finally:
            await replica.end()

    async def _serve(self, replica: RemoteReplica) -> None:
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

    async def _pull(self, replica: RemoteReplica) -> None:
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
                error = await self._cluster.explain(raised)
            finally:
                if not call.answer.done():
                    call.answer.set_result(result) if error is None else call.answer.set_exception(error)

    def _check_software(self, software: dict[str, str]) -> None:
        """Checks that replicas are alike, and have the flow's rondo; the flow may lack what only they need."""
        before = self._software or {**software, "rondo": packages().get("rondo", "")}
        names = sorted({*before, *software})
        differing = [name for name in names if software.get(name) != before.get(name)]
        if differing:
            wrong = "; ".join(
                f"{name} {software.get(name, 'none')}, not {before.get(name, 'none')}" for name in differing
            )
            raise ClusterError(
                f"a node of the cluster has other software than those before it or the flow ({wrong}): results would "
                "depend on who computes them; install the same on all nodes"
            )
        self._software = software

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
