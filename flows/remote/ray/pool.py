"""Replicas of a worker on a Ray cluster: see `flows.remote.replica_pool`.

If a replica or its node dies, whoever asked makes its calls again. So Ray's ``max_task_retries`` is for none of these
calls; its ``max_restarts`` starts a replica that died again when a node has room. Ray's ActorPool gives an actor one
task at a time, and gives further ones to an actor that has died.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.errors import ClusterError
from flows.host.versions import packages
from flows.remote.ray.cluster import RayCluster
from flows.remote.ray.replica import NEWS_SECONDS, RemoteReplica
from flows.remote.replica_pool import ReplicaPool
from pipeline.config import ReplicasConfig


class RayPool(ReplicaPool):
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
        super().__init__(kind, config.replicas, capacity, say)
        self._settings = json.dumps({
            "kind": kind, "arguments": dict(arguments), "created": created, "environment": dict(environment),
            "capacity": capacity,
        })  # fmt: skip
        self._log, self._config, self._cluster = log, config, cluster
        self._patience = cluster.patience
        self._minding: asyncio.Task[None] | None = None
        self._software: Mapping[str, str] | None = None  # of the first replica

    def _make(self, place: int) -> RemoteReplica:
        return RemoteReplica(self.kind, place, self._settings, self._config, self._log)

    async def _connect(self) -> None:
        await self._cluster.join()
        self._minding = asyncio.create_task(self._mind())

    async def _disconnect(self) -> None:
        assert self._minding is not None
        self._minding.cancel()
        await asyncio.gather(self._minding, return_exceptions=True)
        await self._cluster.leave()

    async def _explain(self, error: Exception) -> Exception:
        return await self._cluster.explain(error)

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

    def _check(self, software: Mapping[str, str]) -> None:
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
