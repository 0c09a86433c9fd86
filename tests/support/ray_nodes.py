"""A Ray cluster of several nodes on this machine, which listens on loopback only."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """The nodes: a head, where nothing is placed, and others of one CPU."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address

    def add(self, count: int = 1, **settings: Any) -> list[Any]:
        """New nodes."""
        return [self._cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", **settings) for _ in range(count)]

    def remove(self, node: Any) -> None:
        """Kills all processes of a node."""
        self._cluster.remove_node(node, allow_graceful=False)

    @property
    def raylets(self) -> dict[int, Any]:
        """The nodes, without the head, by the process that starts a node's actors."""
        return {node.all_processes["raylet"][0].process.pid: node for node in self._cluster.worker_nodes}

    @property
    def directory(self) -> str:
        """Where Ray keeps the nodes' logs."""
        found: str = self._cluster.head_node.get_session_dir_path()
        return found


@contextmanager
def ray_nodes() -> Iterator[Nodes]:
    """A cluster with its head only. The settings must come before Ray is imported: no other test may do that."""
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
    os.environ.update(SETTINGS, RAY_TMPDIR=directory)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    tests = Path(__file__).parents[1]  # the nodes' workers import judges of the tests
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent)])
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()
        shutil.rmtree(directory, ignore_errors=True)
