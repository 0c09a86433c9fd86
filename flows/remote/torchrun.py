"""How a worker's ranks are started: by plain torchrun, on this machine or together with those of others.

torchrun's own stores listen on every network and unpickle what they are sent. So on one machine torchrun and the ranks
meet in a directory of the user's, and all else goes over loopback. Over several machines these stores are used all the
same: ``devices.trainer_address`` belongs inside the cluster's own network; see ``docs/machines.md``.
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import psutil

from flows.errors import NodeError
from pipeline.config.devices import DevicesConfig
from pipeline.errors import ConfigError

RANKS = "flows.remote.rank_main"
DIRECTORY = "RONDO_RANKS"  # as in pipeline.model.distributed, which would load torch here
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class Torchrun:
    """The ranks of one worker.

    Attributes:
        ranks: processes on each machine.
        nodes: machines; this one, whose first rank answers, and others on which somebody starts torchrun too.
        address: HOST:PORT of this machine, where the others find it.
        wait: seconds that the machines have to meet.
        say: shows people a sentence.
    """

    ranks: int
    nodes: int = 1
    address: str = ""
    wait: float = 600.0
    say: Callable[[str], None] = field(default=lambda sentence: None)
    _errors: Path | None = None
    _missing: NodeError | None = None

    def prepare(self, temporary: str | None) -> tuple[list[str], dict[str, str]]:
        """Makes the command without the worker's kind and arguments, and its environment.

        Args:
            temporary: a directory for files that go with the worker.

        Raises:
            NodeError: the address cannot be used here, or machines were missing when this was tried before.
            ConfigError: the address is not HOST:PORT.
        """
        directory = tempfile.mkdtemp(prefix="ranks-", dir=temporary)
        self._errors = Path(directory, "errors.json")
        given = {"TORCHELASTIC_ERROR_FILE": str(self._errors)}
        if self.nodes == 1:
            options = ["--rdzv-conf=store_type=file", f"--rdzv-endpoint={directory}/torchrun"]
            given |= {DIRECTORY: directory, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
            given |= dict.fromkeys(INTERFACES, "lo")
        else:
            if self._missing is not None:
                raise self._missing
            own = _own_address(self.address)
            wait = max(1, round(self.wait))
            options = [f"--nnodes={self.nodes}", f"--rdzv-endpoint={self.address}", f"--local-addr={own}"]
            options.append(f"--rdzv-conf=is_host=true,join_timeout={wait}")
            given |= interfaces(own)
            self.say(f"waiting for {self._others} at {self.address}, each with torchrun -m {RANKS}")
        command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", *options]
        return [*command, f"--nproc-per-node={self.ranks}", "-m", RANKS], given

    def failure(self) -> NodeError | None:
        """Says why torchrun ended, if machines were missing; else None. They are not waited for again."""
        if self._errors is not None and self._errors.exists():
            error = json.loads(self._errors.read_text())["message"]
            if isinstance(error, dict) and error["message"].startswith("RendezvousTimeoutError"):
                self._missing = NodeError(
                    f"{self._others} did not come to {self.address} within {self.wait:g} s: start torchrun on them as "
                    "docs/machines.md says, or go on with those that are there: rondo resume RUN --set "
                    "devices.trainer_nodes=N"
                )
        return self._missing

    @property
    def _others(self) -> str:
        count = self.nodes - 1
        return f"{count} other machine{'s' if count > 1 else ''} of the update"


def torchrun_of(devices: DevicesConfig, say: Callable[[str], None]) -> Torchrun | None:
    """Says how a recipe's trainer is started; None if it is one process."""
    if devices.trainer_world == 1:
        return None
    address = devices.trainer_address or ""
    return Torchrun(devices.trainer_ranks, devices.trainer_nodes, address, devices.trainer_wait, say)


def interfaces(own: str) -> dict[str, str]:
    """Makes variables for ranks to use the network in which this machine is ``own``; those of the user stay."""
    found = [name for name, ways in psutil.net_if_addrs().items() if own in (way.address for way in ways)]
    return {variable: os.environ.get(variable, name) for variable in INTERFACES for name in found[:1]}


def address_towards(host: str, port: int) -> str:
    """Finds the address that this machine has in the network in which it reaches another one.

    Raises:
        OSError: there is no way there.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # sends nothing
        found: str = probe.getsockname()[0]
    return found


def split_address(address: str) -> tuple[str, int]:
    """Splits HOST:PORT, such as node1:29400 or [fd00::5]:29400, into host and port.

    Raises:
        ConfigError: the text has another form.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"'{address}' is not HOST:PORT: give a name or an address and a port, as node1:29400")
    return host, int(port)


def _own_address(address: str) -> str:
    """Returns this machine's own address in numbers.

    Raises:
        NodeError: it is not this machine's, no other machine reaches it, or its port is taken. torchrun itself would
            say so in pages.
        ConfigError: the text is not HOST:PORT.
    """
    host, port = split_address(address)
    try:
        family, _, _, _, (own, *_rest) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if ip_address(own).is_loopback and host not in (own, "localhost"):
            raise NodeError(
                f"devices.trainer_address {address} means {own} here, which no other machine reaches: give this "
                "machine's address in the cluster's network"
            )
        socket.create_server((own, port), family=family).close()
    except OSError as error:
        raise NodeError(
            f"devices.trainer_address {address} cannot be listened on ({error.strerror}): give a name or an address "
            "of this machine in the cluster's network, and a port that is free"
        ) from None
    return str(own)
