"""A whole run in a bucket, sampled and judged on a Ray cluster that loses a node and gets a new one meanwhile."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from storage.errors import RunNotFoundError
from storage.log.store import Store
from support.compare import assert_same
from support.ray_nodes import Nodes, ray_nodes
from support.unreliable_s3 import UnreliableS3

AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two nodes, whose processes know nothing of a bucket."""
    with ray_nodes() as found:
        found.add(2)
        yield found


def begun(root: str, stage: str) -> bool:
    """Whether round 1 has committed anything of a stage."""
    try:
        return bool(Store.open(root).run("ray").entries(round=1, stage=stage))
    except RunNotFoundError:
        return False


@pytest.mark.timeout(900)
def test_a_run_on_a_cluster_is_that_of_one_machine(
    nodes: Nodes,
    environment: dict[str, str],
    s3: UnreliableS3,
    s3_environment: None,
    tiny_recipe: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    root = "s3://rondo/ray"
    settings: dict[str, Any] = {
        "mode": "streaming",
        "cluster.address": nodes.address,
        "cluster.sampler.replicas": 2,
        "cluster.judge.replicas": 1,
        "cluster.judge.cpus": 0,
        "cluster.environment": f"[{', '.join(AWS)}]",
    }
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "flows.cli.main",
        "run",
        str(tiny_recipe),
        "--name",
        "ray",
        "--root",
        root,
        *changes,
    ]
    ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    with (tmp_path / "out").open("wb") as out:
        flow = subprocess.Popen(command, env={**environment, **s3.environment, **ray}, stdout=out, stderr=out)
    while not begun(root, "candidates") and flow.poll() is None:
        time.sleep(0.05)
    # A sampler is on each: one of them dies, and with it the judge where that is there.
    nodes.remove(next(iter(nodes.raylets.values())))
    nodes.add()
    assert flow.wait(timeout=600) == 0, (tmp_path / "out").read_text()
    assert_same(whole, "whole", root, "ray", range(3))
    said = (tmp_path / "out").read_text()
    assert said.count("sampler: a replica has joined on") >= 2
    assert "has gone" in said
    assert not [one for one in psutil.process_iter(["cmdline"]) if root in str(one.info["cmdline"])]
