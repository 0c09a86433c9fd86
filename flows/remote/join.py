"""A machine that joins another one's updates: it waits for a group to form, takes a place in it, and starts its ranks.

`flows/remote/nodes.py` is the other side, and says what both write. All that a machine needs beside is the root of the
store, from which it reads what the update needs; ranks keep copies in a scratch directory of this machine.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.errors import NodeError
from flows.host.scratch import scratch_directory
from flows.registry.catalog import existing_store
from flows.remote.nodes import BEAT_SECONDS
from flows.remote.ranks import (
    meeting_environment,
    own_address,
    processor_seconds,
    split_address,
    torchrun,
    worker_environment,
)
from flows.remote.worker_process import GRACE_SECONDS
from pipeline.recipe import Recipe

POLL_SECONDS = 0.2
ANSWER_SECONDS = 60.0  # longest wait for an answer of the store
Say = Callable[[str], None]


class _RanksEndedError(Exception):
    """The ranks ended before they were told to; the machine stays for the next group."""


class Joining:
    """One machine that serves a head, and those that come after it at the same address, until a run is over.

    Args:
        address: HOST:PORT of the head.
        root: directory or URI of the store, as this machine sees it.
        wait: seconds that it waits for a head where there is none, or where one is gone.
        say: shows people a sentence.
    """

    def __init__(self, address: str, root: str, wait: float, say: Say) -> None:
        self._address, self._wait, self._say = address, wait, say
        self._host, self._port = split_address(address)
        self._root = root
        self._heard_end = False

    def serve(self) -> None:
        """Takes part in whatever the head starts; returns when its run is over.

        Raises:
            NodeError: there is no head, or one of another version.
            ConfigError, StoreError: the head's run is not under this root.
        """
        while True:
            store = self._connect()
            from torch.distributed import DistNetworkError

            try:
                return self._follow(store)
            except DistNetworkError:
                self._say(f"the head at {self._address} is gone; waiting {self._wait:.0f} s for it to come back")

    def _connect(self) -> Any:
        """The head's store, once there is one; torch is loaded then."""
        deadline = time.monotonic() + self._wait
        while time.monotonic() < deadline:
            try:
                socket.create_connection((self._host, self._port), timeout=ANSWER_SECONDS).close()
            except OSError:
                time.sleep(POLL_SECONDS)
                continue
            from torch.distributed import DistNetworkError, TCPStore

            try:
                limit = timedelta(seconds=ANSWER_SECONDS)
                store = TCPStore(self._host, self._port, is_master=False, timeout=limit, wait_for_workers=False)
            except DistNetworkError:  # it has gone meanwhile
                continue
            self._say(f"joined {self._address}")
            return store
        raise NodeError(
            f"nobody listens at {self._address} for {self._wait:.0f} s: start the run there, with "
            f"devices.trainer_address={self._address} and devices.trainer_nodes=N"
        )

    def _follow(self, store: Any) -> None:
        from torch.distributed import PrefixStore

        taken = 0
        while not self._over(store):
            number = int(store.get("group")) if store.check(["group"]) else 0
            if number > taken:
                taken = number
                self._take_part(store, PrefixStore(str(number), store), number)
            time.sleep(POLL_SECONDS)
        self._say("the run is over")

    def _over(self, store: Any) -> bool:
        """Whether the run is over; once heard it is not asked again, as the head soon leaves."""
        self._heard_end = self._heard_end or store.check(["over"])
        return self._heard_end

    def _take_part(self, store: Any, group: Any, number: int) -> None:
        """Takes a place in a group where one is left, and has the ranks work until the head dissolves it."""
        if group.check(["ended"]):
            return
        work = json.loads(group.get("work"))
        try:
            recipe = Recipe.model_validate(work["recipe"])
        except ValidationError as error:
            raise NodeError(
                f"the head at {self._address} has a recipe that this machine does not know "
                f"({'.'.join(map(str, error.errors()[0]['loc']))}): install the same version of rondo on both"
            ) from None
        found = existing_store(self._root)  # not before: the head of a first run makes it
        run = found.run(work["run"]).name
        place, nodes = group.add("places", 1), recipe.devices.trainer_nodes
        if place >= nodes:
            self._say(f"the group has its {nodes} machines: waiting for the next")
            return
        try:
            with scratch_directory(found.root, f"{run} machine {place}") as scratch:
                logs = found.log_directory(run) or scratch
                log = logs / f"trainer-machine{place + 1}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                ranks = self._start(number, place, recipe, {"root": found.root, "run": run}, scratch, log)
                try:
                    _until_ended(group, place, ranks, log)
                    self._over(store)
                finally:
                    _end(ranks)
        except _RanksEndedError as ended:
            group.set(f"lost {place}", str(ended))
            self._say(f"machine {place + 1}: {ended}; waiting for the head to try again")

    def _start(
        self, number: int, place: int, recipe: Recipe, run: dict[str, str], scratch: Path, log: Path
    ) -> subprocess.Popen[bytes]:
        """The ranks of this machine; they meet those of the others."""
        devices, temporary = recipe.devices, scratch / "tmp"
        temporary.mkdir()
        arguments = {**run, "recipe": recipe.model_dump(mode="json"), "scratch": str(scratch)}
        own = own_address(self._host, self._port)
        environment = {
            **os.environ, **worker_environment(devices.cpu_threads), "TMPDIR": str(temporary),
            **meeting_environment(self._host, self._port, str(number), own),
        }  # fmt: skip
        command = [*torchrun(devices.trainer_ranks, devices.trainer_nodes, place), "trainer", json.dumps(arguments)]
        with log.open("ab") as output:
            ranks = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        self._say(f"run '{run['run']}': machine {place + 1} of {devices.trainer_nodes}; log: {log}")
        return ranks


def _until_ended(group: Any, place: int, ranks: subprocess.Popen[bytes], log: Path) -> None:
    beats, last = 0, 0.0
    while not group.check(["ended"]):
        if ranks.poll() is not None:
            where = f"{log} on {socket.gethostname()}"
            raise _RanksEndedError(f"its ranks ended with status {ranks.returncode}; their log is {where}")
        if time.monotonic() - last >= BEAT_SECONDS:
            beats, last = beats + 1, time.monotonic()
            group.set(f"beat {place}", f"{beats} {processor_seconds(ranks.pid):.2f}")
        time.sleep(POLL_SECONDS)


def _end(ranks: subprocess.Popen[bytes]) -> None:
    """Ends them as the head ends its own: without their pipe they leave, and are killed where they do not."""
    assert ranks.stdin is not None
    ranks.stdin.close()
    try:
        ranks.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        ranks.kill()
        ranks.wait()
