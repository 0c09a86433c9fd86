"""The head's side of an update over several machines: those that join, their ranks, and when one is lost.

The flow keeps a key-value store at the recipe's ``devices.trainer_address``, torch's TCPStore, for as long as it runs.
Each start of the trainer is a group under a number of its own: the head writes what the group is to do, machines that
wait (`flows/remote/join.py`) take the places in it, and the ranks then meet in the same store.

    group           number of the group that is being formed, or at work
    over            there: the run has ended, and no other group will follow
    N/work          run and recipe, as JSON
    N/places        how many machines have taken a place; those beyond what is needed wait for the next group
    N/beat P        how often the machine at place P has written this, and its ranks' processor time in seconds
    N/lost P        why the ranks at place P have ended
    N/ended         there: the group is dissolved, and the machines end their ranks

The store holds plain bytes, and what is read from it is checked as data; there are no commands, no paths and no
variables of the environment in it. It listens on the one address that the recipe gives. But it knows no password: who
reaches the port can have the machines that joined run an update of theirs, in the root that was given to each. Keep it,
as gloo's and NCCL's own connections, within the cluster's network.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from flows.errors import NodeError, WorkerDiedError
from flows.remote.ranks import meeting_environment, own_address, split_address
from pipeline.config import DevicesConfig

BEAT_SECONDS = 1.0
SILENT_SECONDS = 60.0
"""A machine from which nothing was heard for so long is lost."""

QUIET_SECONDS = 4 * BEAT_SECONDS
"""The same, where the ranks of another one have just failed."""

FAREWELL_SECONDS = 3 * BEAT_SECONDS
"""How long the store stays for the others to read that the run is over."""

_POLL_SECONDS = 0.1


class Nodes:
    """The machines of one trainer, apart from this one.

    Args:
        address: HOST:PORT of this machine.
        count: machines that the update takes, this one included.
        wait: seconds that a group may take to form.
        say: shows people a sentence.
    """

    def __init__(self, address: str, count: int, wait: float, say: Callable[[str], None]) -> None:
        self.count = count
        self.lost: WorkerDiedError | None = None
        self._address, self._wait, self._say = address, wait, say
        self._host, self._port = split_address(address)
        self._store: Any = None
        self._group: Any = None  # the part of the store that is the present group's
        self._number = 0
        self._beats: dict[int, tuple[str, float]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._missing: NodeError | None = None

    @property
    def processor_seconds(self) -> float:
        """Processor time of the other machines' ranks, as far as it was heard of."""
        return sum(float(beat.partition(" ")[2]) for beat, _ in self._beats.values())

    async def gather(self, work: Mapping[str, Any]) -> dict[str, str]:
        """A new group: waits until its places are taken, and returns the environment of this machine's ranks.

        Args:
            work: the worker's arguments.

        Raises:
            NodeError: the places are not taken in time, or the address is not this machine's.
        """
        from torch.distributed import PrefixStore

        if self._missing is not None:
            raise self._missing
        self.end()
        if self._store is None:
            self._store = await asyncio.to_thread(_listen, self._host, self._port)
        self._number += 1
        self._group = PrefixStore(str(self._number), self._store)
        self._group.set("work", json.dumps({"run": work["run"], "recipe": work["recipe"]}))
        self._store.set("group", str(self._number))
        try:
            await self._places_taken()
        except BaseException:
            self.end()
            raise
        now = time.monotonic()
        self.lost, self._beats = None, dict.fromkeys(range(1, self.count), ("", now))
        own = own_address(self._host, self._port)
        return meeting_environment(self._host, self._port, str(self._number), own)

    async def _places_taken(self) -> None:
        deadline, said = time.monotonic() + self._wait, False
        while (found := self._group.add("places", 0)) < self.count - 1:
            missing = f"{self.count - 1 - found} of the {self.count} machines of the update"
            if time.monotonic() > deadline:
                self._missing = NodeError(
                    f"{missing} did not join within {self._wait:.0f} s: start 'rondo join {self._address}' on them, or "
                    "go on with those that are there: rondo resume RUN --set devices.trainer_nodes=N"
                )
                raise self._missing
            if not said and time.monotonic() > deadline - self._wait + BEAT_SECONDS:
                self._say(f"waiting for {missing}: rondo join {self._address} --root ROOT")
                said = True
            await asyncio.sleep(_POLL_SECONDS)

    def watch(self, process: asyncio.subprocess.Process) -> None:
        """Ties this machine's part of the group to the others' parts: where one ends, all do, and `lost` says why."""
        self._watching = asyncio.create_task(self._watch(process, self._group))

    async def _watch(self, process: asyncio.subprocess.Process, group: Any) -> None:
        while process.returncode is None and (reason := self._hear(group, SILENT_SECONDS)) is None:
            await asyncio.sleep(BEAT_SECONDS / 2)
        if process.returncode is None:
            self.lost = WorkerDiedError(reason)
            with suppress(ProcessLookupError):
                process.kill()
        group.set("ended", "")

    async def blame(self) -> WorkerDiedError | None:
        """The loss of another machine, where that is why ranks of this one have failed."""
        group, until = self._group, time.monotonic() + QUIET_SECONDS
        while group is not None and self.lost is None and time.monotonic() < until:
            if (reason := self._hear(group, QUIET_SECONDS)) is not None:
                self.lost = WorkerDiedError(reason)
            await asyncio.sleep(_POLL_SECONDS)
        return self.lost

    def _hear(self, group: Any, patience: float) -> str | None:
        """Takes the others' signs of life; why one is lost, where one is."""
        for place, (before, since) in self._beats.items():
            if group.check([f"lost {place}"]):
                return f"{self._name(place)}: {group.get(f'lost {place}').decode()}"
            beat = group.get(f"beat {place}").decode() if group.check([f"beat {place}"]) else ""
            if beat != before:
                self._beats[place] = (beat, time.monotonic())
            elif (silence := time.monotonic() - since) > patience:
                return f"{self._name(place)} is gone: nothing was heard of it for {silence:.0f} s"
        return None

    def _name(self, place: int) -> str:
        return f"machine {place + 1} of the {self.count} that share the update"

    def end(self) -> None:
        """Dissolves the group, where there is one."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if self._group is not None:
            self._group.set("ended", "")
            self._group = None

    def part(self) -> None:
        """Tells all machines that the run is over, those that wait too."""
        if self._store is not None:
            self._store.set("over", "")
        self.end()

    async def close(self) -> None:
        """Parts, and closes the store once the others may have heard of it."""
        self.part()
        if self._store is not None:
            await asyncio.sleep(FAREWELL_SECONDS)
            self._store = None


def nodes_of(devices: DevicesConfig, say: Callable[[str], None]) -> Nodes | None:
    """The other machines that a recipe's update takes; None where it takes none."""
    if devices.trainer_nodes == 1 or devices.trainer_address is None:
        return None
    return Nodes(devices.trainer_address, devices.trainer_nodes, devices.trainer_wait, say)


def _listen(host: str, port: int) -> Any:
    """A store that listens on this one address.

    Raises:
        NodeError: it is not this machine's, or is its alone, or is taken.
    """
    from torch.distributed import TCPStore

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if ip_address(address[0]).is_loopback and host not in (address[0], "localhost"):
            raise NodeError(
                f"devices.trainer_address {host}:{port} means {address[0]} here, which no other machine reaches: give "
                "this machine's address in the cluster's network"
            )
        listening = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise NodeError(
            f"devices.trainer_address {host}:{port} cannot be listened on ({error.strerror}): give a name or an "
            "address of this machine in the cluster's network, and a port that is free"
        ) from None
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
