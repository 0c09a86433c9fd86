"""How a group of ranks is started on a machine, and what it needs to know of the network. Nothing here loads torch."""

import contextlib
import os
import socket
import sys

import psutil

from pipeline.errors import ConfigError

RANKS = "flows.remote.rank_main"
MEETING = "RONDO_MEETING"  # as in pipeline.model.distributed, which would load torch here

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Ranks of one machine talk to each other over no other network."""

# CPU libraries of two workers side by side must not spin while they wait: each would hold a core from the other.
_QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


def worker_environment(cpu_threads: int) -> dict[str, str]:
    """Variables of every worker."""
    return {"OMP_NUM_THREADS": str(cpu_threads), **_QUIET_THREADS}


def torchrun(ranks: int, nodes: int = 1, node: int = 0) -> list[str]:
    """The command of one node's ranks, without the worker's kind and arguments; see ``flows/remote/rendezvous.py``."""
    command = [sys.executable, "-m", "flows.remote.rendezvous", "--rdzv-backend=rondo", f"--rdzv-conf=node={node}"]
    return [*command, f"--nnodes={nodes}", f"--nproc-per-node={ranks}", "-m", RANKS]


def meeting_environment(host: str, port: int, name: str, own: str) -> dict[str, str]:
    """Variables of ranks that meet in a store, on a machine whose address in that network is ``own``.

    A user's own GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME stay.
    """
    where = f"[{host}]" if ":" in host else host
    interfaces = psutil.net_if_addrs().items()
    found = next((interface for interface, ways in interfaces if own in (way.address for way in ways)), "")
    chosen = {variable: os.environ.get(variable, found) for variable in LOOPBACK}
    return {MEETING: f"tcp://{where}:{port}/{name}", **{key: value for key, value in chosen.items() if value}}


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, as node1:29400 or [fd00::5]:29400.

    Raises:
        ConfigError: it is none.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"'{address}' is not HOST:PORT: give a name or an address and a port, as node1:29400")
    return host, int(port)


def own_address(host: str, port: int) -> str:
    """The address that this machine has in the network in which it reaches another one.

    Raises:
        OSError: there is no way there.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # sends nothing
        found: str = probe.getsockname()[0]
    return found


def processor_seconds(pid: int) -> float:
    """Processor time of a process and its descendants so far."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                total += times.user + times.system
    return total
