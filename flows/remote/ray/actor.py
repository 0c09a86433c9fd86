"""A replica of a worker: an actor that keeps a worker process on its node, and passes requests on to it.

The worker has a process of its own beside the actor's, as it has without Ray. So its environment is set before anything
is imported, and a worker that dies or hangs is noticed and started again in the same way. vLLM also meets no Ray in its
process; otherwise it would spread itself over Ray.

Ray pickles what it sends between the processes of its cluster. Only strings of JSON are sent here, and the contents of
files are never unpickled. Variables of the environment, keys of buckets among them, come as an argument: Ray's own way
for them, ``runtime_env``, writes them to log files of every node.
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
    """The class of the actor.

    Args:
        settings: JSON of ``kind``, ``arguments`` (without ``scratch``), ``environment``, ``capacity`` and ``created``,
            the time that tells a run from another one of the same name.
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
        # The worker runs the same code as this actor, even if another checkout is on the path.
        path = os.pathsep.join([str(_CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"PYTHONPATH": path, **given["environment"], "TMPDIR": str(temporary)}
        arguments = {**self._arguments, "scratch": str(scratch)}
        self._worker = WorkerProcess(given["kind"], arguments, self._log, environment, capacity=given["capacity"])
        self._news: dict[int, list[Any]] = {}
        self._joined = False

    async def wake(self) -> str:
        """Answers once it has a node."""
        return json.dumps({})

    async def join(self) -> str:
        """Starts the worker; the answer says where it is and what software it has."""
        try:
            self._check_root()
            await self._worker.start()
        except (RondoError, StoreError) as error:
            return self._failed(error)
        self._joined = True
        software = {**packages(), "python": platform.python_version()}
        return json.dumps({"result": {"node": socket.gethostname(), "pid": os.getpid(), "software": software}})

    async def ask(self, request: str) -> str:
        """Calls one method of the worker; returns its answer with the progress that :meth:`news` has not yet told."""
        if not self._joined:
            return json.dumps({"unjoined": True})
        given = json.loads(request)
        number = given["id"]
        progress = self._news[number] = []
        try:
            result = await self._worker.call(
                given["method"], on_progress=progress.append, alone=given["alone"], **given["arguments"]
            )
            answer = json.dumps({"result": result})
        except (RondoError, StoreError) as error:
            answer = self._failed(error)
        finally:
            del self._news[number]
        return json.dumps({**json.loads(answer), "progress": progress})

    async def news(self) -> str:
        """Returns the progress of the requests since the last time; an answer is a sign of life as well.

        Ray may have started it again since it was last asked: then the answer, as that of :meth:`ask`, is that it is
        unjoined. Else the pool would take it for the one that died.
        """
        if not self._joined:
            return json.dumps({"unjoined": True})
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
        """Returns what the worker has printed since the last call; if that is long, only its end."""
        if not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._read, size - LOG_END))
            self._read = size
            return log.read().decode("utf-8", "replace")

    def _check_root(self) -> None:
        """Raises ConfigError if the root is a directory, and this node has none or another one under that path."""
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
