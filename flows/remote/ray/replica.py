"""The flow's side of one replica: an actor that is asked by strings of JSON, and that may die at any time.

Ray starts it again in its place, as often as it dies, on whichever node has room. But Ray makes no request again: what
died with a request is told to whoever asked, who counts how often a shard has done that.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.errors import WorkerDiedError, WorkerError
from flows.remote.calls import Progress
from flows.remote.ray.actor import Replica
from flows.remote.worker_process import known_error
from pipeline.config import ReplicasConfig

NEWS_SECONDS = 1.0
SILENT_SECONDS = 120.0  # an actor that does not answer for so long is taken for dead
LEAVE_SECONDS = 10.0


class RemoteReplica:
    """One actor in all its lives. It is asked of Ray here, and waits there until a node has room for it.

    Args:
        kind: what its worker is, for messages.
        place: its number among the replicas.
        settings: see ``Replica``.
        config: what it needs of a node.
        log: the local file that collects the ends of its worker's log.

    Attributes:
        node: the host that it is on, once it has joined.
        pid: its process there.
        alive: whether it has joined and is not known to have died since.
    """

    def __init__(self, kind: str, place: int, settings: str, config: ReplicasConfig, log: Path) -> None:
        import ray

        actor = ray.remote(Replica).options(num_cpus=config.cpus, num_gpus=config.gpus, max_restarts=-1)
        self._actor = actor.remote(settings)
        self._kind, self._place, self._log = kind, place, log
        self._progress: dict[int, Progress | None] = {}
        self.node, self.pid, self.alive = "a node", 0, False

    async def join(self) -> dict[str, str]:
        """Waits until it is there, also again, and its worker is constructed; returns the versions of its software.

        Raises:
            RondoError, StoreError: what the worker raised.
            WorkerDiedError: the actor or its node has died.
        """
        await self._answer("wake", max_task_retries=-1)  # for as long as no node has room
        self.alive = True
        joined = self._result(await self._answer("join"))
        self.node, self.pid = joined["node"], joined["pid"]
        software: dict[str, str] = joined["software"]
        return software

    async def ask(self, request: Mapping[str, Any], on_progress: Progress | None) -> Any:
        """Returns the answer of one method of its worker; raises as ``join`` does."""
        number = request["id"]
        self._progress[number] = on_progress
        try:
            answer = await self._answer("ask", json.dumps(request))
            self._report(number, answer["progress"])
        finally:
            self._progress.pop(number, None)
        return self._result(answer)

    async def listen(self) -> None:
        """Passes on progress until the actor dies; raises WorkerDiedError when it has, or says nothing for too long."""
        while True:
            await asyncio.sleep(NEWS_SECONDS)
            try:
                # On Python 3.11 `wait_for` would swallow a cancellation that meets its answer, and this never end.
                async with asyncio.timeout(SILENT_SECONDS):
                    news = await self._answer("news")
            except TimeoutError:
                self._kill(no_restart=False)
                raise WorkerDiedError(
                    f"the replica of the {self._kind} on {self.node} has said nothing for {SILENT_SECONDS:.0f} s"
                ) from None
            for number, messages in news.items():
                self._report(int(number), messages)

    async def end(self) -> None:
        """Ends the actor for good, in order if it still answers. The worker ends with it in any case."""
        if self.alive:
            with contextlib.suppress(WorkerDiedError, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._answer("leave")
        self.alive = False
        self._kill(no_restart=True)

    def _kill(self, *, no_restart: bool) -> None:
        import ray

        with contextlib.suppress(Exception):  # of an actor that Ray does not know any more
            ray.kill(self._actor, no_restart=no_restart)

    async def _answer(self, method: str, *arguments: str, max_task_retries: int = 0) -> dict[str, Any]:
        asked = getattr(self._actor, method).options(max_task_retries=max_task_retries)
        try:
            answer = await asked.remote(*arguments)
        except Exception as error:  # Ray's own kinds, and a plain one if it knows no such actor any more
            self.alive = False
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise WorkerDiedError(f"the replica of the {self._kind} on {self.node} has died: {why}") from None
        found: dict[str, Any] = json.loads(answer)
        if found.get("unjoined"):
            self.alive = False
            raise WorkerDiedError(f"the replica of the {self._kind} on {self.node} has died and was started again")
        return found

    def _report(self, number: int, messages: list[Any]) -> None:
        on_progress = self._progress.get(number)
        for metrics in messages if on_progress else ():
            assert on_progress is not None
            if "device" in metrics:
                metrics["device"] = f"{self.node}/{self._place} {metrics['device']}"
            on_progress(metrics)

    def _result(self, answer: Mapping[str, Any]) -> Any:
        if "error" not in answer:
            return answer["result"]
        if answer["log"]:
            self._log.parent.mkdir(exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"--- the end of the log of the replica on {self.node}\n{answer['log']}\n")
        kind, message = answer["error"]["kind"], answer["error"]["message"]
        # The node may be gone when somebody wants to read.
        message = message.replace(answer["log_path"], str(self._log))
        raise known_error(kind, message) or WorkerError(message)
