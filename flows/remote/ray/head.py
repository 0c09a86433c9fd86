"""A Ray cluster on this machine alone, in a process that holds a pipe to its parent and ends when the pipe closes.

It ends as well when its only node does: Ray itself would wait for another one.

    python -m flows.remote.ray.head '{"_temp_dir": ..., "num_cpus": 4}'

It prints the cluster's address. All of Ray's processes are in its process group and end with it at once, also if the
parent was killed: left to itself, Ray would keep two of them for a minute.
"""

import json
import os
import shutil
import signal
import sys
import threading

import psutil


def main() -> None:
    """Starts the cluster and keeps it."""
    given = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(given["_temp_dir"],), daemon=True).start()
    import ray

    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, **given)
    print(ray.get_runtime_context().gcs_address, flush=True)  # noqa: T201  what the parent waits for
    psutil.wait_procs([child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"])
    _end(given["_temp_dir"])


def _end_with_parent(directory: str) -> None:
    sys.stdin.read()
    _end(directory)


def _end(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
