"""The connection to a Ray cluster, or a cluster on this machine that lives as long as the run does.

Ray unpickles what reaches it, whoever sent it. So a cluster that is started here listens on loopback only, and takes
requests only from those who know its token. The token is made for it alone and lies in no file. A cluster of the user's
own is protected as the user has set it up: by Ray's token authentication, or by a network that nobody else reaches.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.errors import ClusterError, WorkerDiedError
from flows.host.processes import kill_session
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError

OBJECT_STORE_BYTES = 80 * 2**20  # about the least that Ray takes: only small JSON travels
CONNECT_SECONDS = 10.0
HEAD_SECONDS = 30.0  # without its head for so long; Ray itself would kill this process after 60
LOOK_SECONDS = 3.0
NOTICE_SECONDS = 1.0  # within which a head whose node has died has ended
START_SECONDS = 180.0  # a busy two-core machine needs half a minute

_LOCAL = {
    # Its name says where Ray listens on loopback unless it is set; elsewhere only this makes it do so.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayCluster:
    """A cluster that those who use it share: the first to join connects, the last to leave disconnects.

    Attributes:
        patience: longest time without any replica, in seconds.
    """

    def __init__(self, config: ClusterConfig) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "cluster.sampler.replicas and cluster.judge.replicas need Ray: pip install rondo[ray], or set both to 0"
            )
        self._config = config
        self.patience = config.patience_seconds
        self._lost: ClusterError | None = None
        self._watching: asyncio.Task[None] | None = None
        self._members = 0
        self._connected = False
        self._lock = asyncio.Lock()
        self._head: asyncio.subprocess.Process | None = None
        self._directory: Path | None = None

    @property
    def lost(self) -> ClusterError | None:
        """Returns what to end with if the cluster's head has not answered for too long, or our own node is gone."""
        if self._lost is None and self._head is not None and self._head.returncode is not None:
            self._lost = ClusterError(
                "the Ray cluster on this machine (cluster.address 'local') has died, or its only node has: resume the "
                "run, which starts another; what is committed stays"
            )
        return self._lost

    async def explain(self, error: Exception) -> Exception:
        """Returns the loss of the whole cluster, if that is why a replica has died; else the error as it is."""
        if isinstance(error, WorkerDiedError) and self._head is not None:
            await asyncio.sleep(NOTICE_SECONDS)
        return self.lost or error

    async def join(self) -> None:
        """Connects, if that has not been done.

        Raises:
            ClusterError: there is no cluster at this address, or none can be started.
        """
        async with self._lock:
            if self._members == 0:
                try:
                    address = await self._start() if self._config.address == "local" else self._config.address
                    # Not in the main thread, where Ray would take over SIGTERM. Nothing interrupts it.
                    connecting = asyncio.ensure_future(asyncio.to_thread(self._connect, address))
                    try:
                        reached = await asyncio.shield(connecting)
                    finally:
                        await asyncio.wait({connecting})
                    self._watching = asyncio.create_task(self._watch(reached))
                except BaseException:
                    await self._end()
                    raise
            self._members += 1

    async def leave(self) -> None:
        """Disconnects once nobody is left; actors that are still there end with the connection."""
        async with self._lock:
            self._members -= 1
            if self._members == 0:
                await self._end()

    def room(self) -> str:
        """Says what the cluster has, for a message."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        shown = (f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        return f"{len(nodes)} nodes with {', '.join(shown)}" if nodes else "no nodes"

    async def _start(self) -> str:
        """Starts a cluster of this machine alone; returns its address."""
        # One token for all clusters of this process, for Ray reads it once.
        os.environ.update(_LOCAL)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self._directory = _short_directory()
        parts = (self._config.sampler, self._config.judge)
        settings = {
            "_temp_dir": str(self._directory),
            "object_store_memory": OBJECT_STORE_BYTES,
            # Nothing but the replicas runs here: on a small machine they share its processors.
            "num_cpus": max(os.cpu_count() or 1, int(sum(part.replicas * part.cpus for part in parts)) + 1),
        }
        log = self._directory / "head.log"
        with log.open("wb") as errors:
            self._head = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "flows.remote.ray.head", json.dumps(settings),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip
        assert self._head.stdout is not None
        address = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                address = await self._head.stdout.readline()
        if not address:
            said = " ".join(log.read_text(errors="replace").split())[-500:]
            raise ClusterError(f"no Ray cluster could be started on this machine: {said or 'it said nothing'}")
        return address.decode().strip()

    def _connect(self, address: str) -> str:
        """Returns where the head listens for this process."""
        import ray

        if address == "auto":  # as Ray has it; that of a client is then known as one
            address = os.environ.get("RAY_ADDRESS") or address
        try:
            _check_reachable(address)
            self._connected = True
            ray.init(address=address, namespace="rondo", log_to_driver=False, logging_level=logging.ERROR)
            return address if address.startswith("ray://") else str(ray.get_runtime_context().gcs_address)
        except Exception as error:  # Ray raises what its parts raise
            wrong = " ".join((str(error) or repr(error)).split())[:500]
            raise ClusterError(
                f"the Ray cluster of cluster.address '{self._config.address}' cannot be used: {wrong}"
            ) from error

    async def _watch(self, reached: str) -> None:
        """Looks for the head: replicas work on without it, and Ray says nothing until it kills this process."""
        clock = asyncio.get_running_loop().time
        answered = clock()
        while self._lost is None:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await asyncio.to_thread(_check_reachable, reached)
                answered = clock()
            except OSError as error:
                if clock() - answered > HEAD_SECONDS:
                    own = self._config.address == "local"
                    remedy = "resume the run, which starts another" if own else "start it again, and resume the run"
                    self._lost = ClusterError(
                        f"the head of the Ray cluster at {reached} (cluster.address '{self._config.address}') has not "
                        f"answered for {HEAD_SECONDS:.0f} s ({error}): {remedy}; what is committed stays"
                    )

    async def _end(self) -> None:
        import ray

        if self._watching is not None:
            self._watching.cancel()
        if self._connected:  # else the connection is that of others in this process
            await asyncio.to_thread(ray.shutdown)
            self._connected = False
        head, self._head = self._head, None
        if head is not None:
            assert head.stdin is not None
            head.stdin.close()
            while head.returncode is None:  # its own end, not that of whoever holds its pipes
                await asyncio.sleep(0.05)
            await asyncio.to_thread(kill_session, head.pid)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Raises OSError if nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def variables(names: Sequence[str]) -> dict[str, str]:
    """Returns the variables of this process's environment that replicas are given.

    Raises:
        ConfigError: one is not set.
    """
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(
            f"cluster.environment names '{missing[0]}', which is not set: set it where the flow runs, or leave it out"
        )
    return {name: os.environ[name] for name in names}


def _short_directory() -> Path:
    """Makes the directory for Ray's logs and its sockets, whose paths have at most 107 characters."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="rondo-ray-", dir=usual if len(usual) < 20 else Path(usual).anchor + "tmp"))
