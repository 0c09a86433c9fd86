"""A replica of a worker: an actor that keeps a worker process on its node, and passes requests on to it.

The worker has a process of its own beside the actor's, as it has without Ray: its environment is set before anything
is imported, one that dies or hangs is noticed and started again in the same way, and vLLM meets no Ray in its process,
over which it would otherwise spread itself.

Ray pickles what it sends between the processes of its cluster. Nothing but strings of JSON is sent here, and nothing
that a file says is unpickled. Variables of the environment, keys of buckets among them, come as an argument: Ray's own
way for them, ``runtime_env``, writes them to log files of every node.
"""

import json
import os
import platform
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows.host.scratch import held_directory
from flows.host.versions import packages
from flows.remote.worker_process import WorkerProcess
from pipeline.errors import ConfigError, RondoError
from storage.errors import RunNotFoundError, StoreError
from storage.log.store import Store

LOG_END = 8192  # bytes of a worker's log that come with an error
_CODE = Path(__file__).parents[3]


class Replica:
    """What the actor holds.

    Args:
        settings: JSON of ``kind``, ``arguments`` (without ``scratch``), ``environment``, ``capacity`` and ``created``,
            the time by which a run is told from another one of the same name.
    """

    def __init__(self, settings: str) -> None:
        given = json.loads(settings)
        self._arguments, self._created = given["arguments"], given["created"]
        self._held = ExitStack()
        scratch = self._held.enter_context(held_directory("rondo-replica"))
        temporary = scratch / "tmp"
        temporary.mkdir()
        self._log = scratch / f"{given['kind']}.log"
        self._read = 0
        # The worker is that of the code which runs here, wherever a checkout is on the path.
        path = os.pathsep.join([str(_CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"PYTHONPATH": path, **given["environment"], "TMPDIR": str(temporary)}
        arguments = {**self._arguments, "scratch": str(scratch)}
        self._worker = WorkerProcess(given["kind"], arguments, self._log, environment, capacity=given["capacity"])
        self._news: dict[int, list[Any]] = {}

    async def join(self) -> str:
        """Starts the worker; the answer says where it is and what software it has."""
        try:
            self._check_root()
            await self._worker.start()
        except (RondoError, StoreError) as error:
            return self._failed(error)
        software = {**packages(), "python": platform.python_version()}
        return json.dumps({"result": {"node": socket.gethostname(), "pid": os.getpid(), "software": software}})

    async def ask(self, request: str) -> str:
        """The answer of one method of the worker, with the last of its progress."""
        given = json.loads(request)
        number = given["id"]
        self._news[number] = []
        try:
            result = await self._worker.call(
                given["method"], on_progress=self._news[number].append, alone=given["alone"], **given["arguments"]
            )
            answer = json.dumps({"result": result})
        except (RondoError, StoreError) as error:
            answer = self._failed(error)
        return json.dumps({**json.loads(answer), "progress": self._news.pop(number)})

    async def news(self) -> str:
        """The progress of the requests since the last time; to be able to answer is a sign of life as well."""
        found = {number: list(messages) for number, messages in self._news.items() if messages}
        for messages in self._news.values():
            messages.clear()
        return json.dumps(found)

    async def leave(self) -> str:
        """Ends the worker and removes its files."""
        await self._worker.stop()
        self._held.close()
        return json.dumps({})

    def _failed(self, error: Exception) -> str:
        described = {"kind": type(error).__name__, "message": str(error)}
        return json.dumps({"error": described, "log": self._log_end(), "log_path": str(self._log)})

    def _log_end(self) -> str:
        """What the worker has printed since this was last asked for; its end, if that is much."""
        if not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._read, size - LOG_END))
            self._read = size
            return log.read().decode("utf-8", "replace")

    def _check_root(self) -> None:
        """ConfigError where the root is a directory that this node has not, or another one under the same path."""
        root, run = self._arguments["root"], self._arguments["run"]
        if "://" in root:
            return
        try:
            seen = Path(root).is_dir() and Store.open(root).run(run).created == self._created
        except RunNotFoundError:
            seen = False
        if not seen:
            raise ConfigError(
                f"the node {socket.gethostname()} does not see the root {root} of the flow: give a root in a bucket "
                "(s3://...), or a directory that all nodes share under the same path"
            )
