"""Replicas on a Ray cluster of several nodes: what dies costs its shards in flight, and who is slow holds up nobody."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from flows.errors import ClusterError, WorkerDiedError, WorkerError
from flows.host.versions import packages
from flows.remote.ray.actor import Replica
from flows.remote.ray.cluster import RayCluster, variables
from flows.remote.ray.pool import RayPool
from flows.remote.worker_process import WorkerProcess
from pipeline.config import ClusterConfig, ReplicasConfig
from pipeline.errors import ConfigError, DataError, JudgeError
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shards import read_table
from support.held_run import HeldRun
from support.ray_nodes import Nodes, ray_nodes
from support.recipes import TINY

pytestmark = pytest.mark.timeout(600)

SECRET = "a-key-that-nobody-logs"


class Bench(HeldRun):
    """A run whose answers are judged by ``held_judge``, and a pool of two replicas that take two shards each.

    Attributes:
        said: what people were told.
    """

    def __init__(self, directory: Path, nodes: Nodes) -> None:
        super().__init__(directory)
        self.nodes = nodes
        self.log = directory / "judge.log"
        self.said: list[str] = []
        self.cluster = RayCluster(ClusterConfig(address=nodes.address))
        self.pool = self.another(ReplicasConfig(replicas=2), capacity=2)

    def another(self, config: ReplicasConfig, capacity: int = 1, recipe: dict[str, Any] | None = None) -> RayPool:
        """A pool on the same cluster."""
        arguments = {**self.arguments, "recipe": recipe or self.arguments["recipe"]}
        given = {"OMP_NUM_THREADS": "1", "A_KEY": SECRET}
        created, say = self.run.created, self.said.append
        return RayPool("judge", arguments, created, self.log, given, config, capacity, self.cluster, say)

    @property
    def given(self) -> list[tuple[str, int, int, int]]:
        """Who has been given what: answer, pids of the worker, of its actor, and of its node; in order of time."""
        return self.notes()

    async def begin(self, shards: int) -> "list[asyncio.Task[tuple[Any, int]]]":
        """Asks for so many shards, as a step of the flow does, and waits until both replicas are held in one."""
        self.hold()
        tasks = [asyncio.create_task(self._tried_again(number)) for number in range(shards)]
        await until(lambda: len({pid for _, pid, *_ in self.given}) == 2)
        return tasks

    async def _tried_again(self, number: int) -> tuple[Any, int]:
        """The answer, and how often it had to be asked for."""
        arguments = self.shard(number)
        for tries in (1, 2, 3):
            try:
                return await self.pool.call("judge", **arguments), tries
            except WorkerDiedError:
                continue
        raise AssertionError(f"three deaths on shard {number}")

    def hold(self) -> None:
        (self.place / "hold").touch()

    def go(self) -> None:
        (self.place / "hold").unlink()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two nodes of one CPU each."""
    with ray_nodes() as found:
        found.add(2)
        yield found


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes, loop: asyncio.Runner) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"), nodes)
    loop.run(bench.pool.start())
    yield bench
    loop.run(bench.pool.stop())


@pytest.fixture
def bench(shared: Bench, nodes: Nodes, loop: asyncio.Runner) -> Bench:
    """Two nodes, two replicas, and no note of what was before."""
    nodes.add(2 - len(nodes.raylets))
    loop.run(until(lambda: shared.pool.replicas == 2))
    for note in shared.place.iterdir():
        note.unlink()
    shared.said.clear()
    return shared


async def until(condition: Callable[[], object]) -> None:
    """Waits; a test's own limit of time ends it where that never comes."""
    while not condition():
        await asyncio.sleep(0.02)


async def once(worker: RayPool | WorkerProcess, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    try:
        return await work()
    finally:
        await worker.stop()


def test_replicas_do_as_one_process_does(bench: Bench, loop: asyncio.Runner, tmp_path: Path) -> None:
    """The same tables; an error keeps its class and its sentence; no secret reaches Ray's logs."""
    shards, pool = [bench.shard(number) for number in range(8)], bench.pool
    assert pool.capacity == 4

    async def judge(worker: RayPool | WorkerProcess) -> list[Any]:
        return await asyncio.gather(*(worker.call("judge", **shard) for shard in shards))

    async def fail() -> None:
        with pytest.raises(DataError, match="prompt lost"):
            await pool.call("judge", **bench.shard(8, prompt="lost"))
        with pytest.raises(WorkerError, match=r"has no method '_serve'.*judge\.log"):
            await pool.call("_serve")

    files = loop.run(judge(pool))
    assert {node for *_, node in bench.given} == bench.nodes.raylets.keys()
    loop.run(fail())
    assert "has no method" in bench.log.read_text()  # the traceback, of a node that may be far away
    (tmp_path / "scratch").mkdir()
    one = WorkerProcess("judge", {**bench.arguments, "scratch": str(tmp_path / "scratch")}, tmp_path / "log", {})
    for mine, theirs in zip(files, loop.run(once(one, lambda: judge(one))), strict=True):
        tables = [read_table(bench.store, [FileRef.from_json(judged["file"])]) for judged in (mine, theirs)]
        assert tables[0].drop_columns(["latency"]).equals(tables[1].drop_columns(["latency"]))
    logs = [path for path in Path(bench.nodes.directory).rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) > 10
    assert not [path for path in logs if SECRET.encode() in path.read_bytes()]


def test_a_killed_replica_costs_its_shards_in_flight(bench: Bench, loop: asyncio.Runner) -> None:
    """What others hold is done once; a new replica takes the place of the dead one; its worker ends with it."""

    async def work() -> list[tuple[Any, int]]:
        calls = await bench.begin(6)
        _, worker, actor, _ = bench.given[0]
        os.kill(actor, signal.SIGKILL)
        await until(lambda: bench.pool.replicas == 1 and not psutil.pid_exists(worker))
        bench.go()
        answers = await asyncio.gather(*calls)
        await until(lambda: bench.pool.replicas == 2)
        return answers

    answers = loop.run(work())
    assert [judged["file"]["rows"] for judged, _ in answers] == [1] * 6
    assert sorted(tries for _, tries in answers) == [1, 1, 1, 1, 2, 2]
    assert any("has gone; 1 are left" in line for line in bench.said)


def test_a_worker_that_dies_is_started_again_in_its_replica(bench: Bench, loop: asyncio.Runner) -> None:
    async def work() -> list[tuple[Any, int]]:
        calls = await bench.begin(4)
        os.kill(bench.given[0][1], signal.SIGKILL)
        bench.go()
        return await asyncio.gather(*calls)

    assert sorted(tries for _, tries in loop.run(work())) == [1, 1, 2, 2]
    assert len({actor for _, _, actor, _ in bench.given}) == 2
    assert bench.said == []
    assert bench.pool.replicas == 2


def test_nodes_that_leave_and_join(bench: Bench, nodes: Nodes, loop: asyncio.Runner) -> None:
    """A node goes with its two shards, which the others do; a new node's replica takes at once what waits."""

    async def work() -> list[tuple[Any, int]]:
        calls = await bench.begin(6)
        lost, other = bench.given
        nodes.remove(nodes.raylets[lost[3]])
        await until(lambda: bench.pool.replicas == 1 and not psutil.pid_exists(lost[1]))
        assert bench.given == [lost, other]
        nodes.add()
        await until(lambda: len(bench.given) == 3)  # while the other one is still held
        assert bench.given[2][3] not in (lost[3], other[3])
        bench.go()
        return await asyncio.gather(*calls)

    assert sorted(tries for _, tries in loop.run(work())) == [1, 1, 1, 1, 2, 2]
    assert len(bench.given) == 7


def test_a_slow_replica_holds_up_nobody(bench: Bench, loop: asyncio.Runner) -> None:
    """It takes 3 s for a shard, and what it does not hold already the other one does meanwhile."""

    async def work() -> int:
        calls = await bench.begin(12)
        slow = bench.given[0][1]
        (bench.place / "slow").write_text(str(slow))
        bench.go()
        await asyncio.gather(*calls)
        return slow

    slow = loop.run(work())
    assert len(bench.given) == 12
    assert len([pid for _, pid, *_ in bench.given if pid == slow]) == 2


def test_a_cluster_without_room_is_not_waited_for_for_ever(
    bench: Bench, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.cluster, "patience", 2.0)
    pool = bench.another(ReplicasConfig(replicas=1, cpus=5))
    # Ray hears late of nodes that left: their number is not what is tested.
    words = r"no replica of the judge was there for 2 s .*needs 5 CPUs and 0 GPUs, and the cluster has \d nodes with "
    with pytest.raises(ClusterError, match=words):
        loop.run(once(pool, lambda: pool.call("versions")))
    with pytest.raises(WorkerError, match="was asked after it had been stopped"):
        loop.run(pool.call("versions"))


def test_a_replica_that_cannot_start_says_why(bench: Bench, loop: asyncio.Runner) -> None:
    """The error of the worker's constructor arrives as it does from a process of one's own."""
    judge = {"kind": "python", "function": "support.held_judge:nothing"}
    pool = bench.another(ReplicasConfig(replicas=2, cpus=0), recipe={**TINY, "judge": judge})
    with pytest.raises(JudgeError, match=r"'support\.held_judge:nothing' cannot be imported"):
        loop.run(once(pool, lambda: pool.call("versions")))


def test_another_version_of_a_package_is_refused(
    bench: Bench, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.remote.ray.pool.packages", lambda: {**packages(), "rondo": "0.0"})
    pool = bench.another(ReplicasConfig(replicas=1, cpus=0))
    with pytest.raises(ClusterError, match=r"rondo \S+, not 0\.0"):
        loop.run(once(pool, lambda: pool.call("versions")))


def test_replicas_are_alike(bench: Bench, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would take a dead one's place has another torch than that had, as the pool remembers it.

    Ray has started it again long before the pool asks for news: it is not taken for the dead one.
    """
    monkeypatch.setattr("flows.remote.ray.replica.NEWS_SECONDS", 8.0)
    pool = bench.another(ReplicasConfig(replicas=1, cpus=0))

    async def work() -> None:
        await pool.call("judge", **bench.shard(0))
        assert pool._software is not None
        pool._software["torch"] = "1.0"
        os.kill(bench.given[0][2], signal.SIGKILL)
        await until(lambda: pool.replicas == 0)
        with pytest.raises(ClusterError, match=r"torch \S+, not 1\.0"):
            await pool.call("versions")

    loop.run(once(pool, work))


def test_a_node_must_see_the_root(shared: Bench, tmp_path: Path, loop: asyncio.Runner) -> None:
    """A directory that is not there, one without the run, and one with another run of the same name."""
    (tmp_path / "empty").mkdir()
    Store.open(tmp_path / "other").create_run("r", {})

    async def join(root: Path) -> dict[str, str]:
        settings = {
            "kind": "judge", "arguments": {**shared.arguments, "root": str(root)}, "environment": {}, "capacity": 1,
            "created": shared.run.created,
        }  # fmt: skip
        replica = Replica(json.dumps(settings))
        joined: dict[str, str] = json.loads(await replica.join())["error"]
        await replica.leave()
        return joined

    for name in ("nowhere", "empty", "other"):
        error = loop.run(join(tmp_path / name))
        assert error["kind"] == "ConfigError"
        assert f"does not see the root {tmp_path / name} of the flow" in error["message"]
    assert not (tmp_path / "nowhere").exists()


def test_variables_that_are_named_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", SECRET)
    assert variables(["A_KEY"]) == {"A_KEY": SECRET}
    with pytest.raises(ConfigError, match=r"cluster\.environment names 'NO_KEY', which is not set"):
        variables(["A_KEY", "NO_KEY"])


def test_the_head_of_a_clients_cluster_is_where_the_client_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself names an address within the cluster, which the machine of a client may never reach."""
    import ray

    asked: list[str] = []
    within = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", lambda address, **_options: asked.append(address))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: within)
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{port}")
        assert RayCluster(ClusterConfig(address="auto"))._connect("auto") == f"ray://127.0.0.1:{port}"
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert RayCluster(ClusterConfig(address="auto"))._connect("auto") == within.gcs_address
    monkeypatch.delenv("RAY_ADDRESS")
    assert RayCluster(ClusterConfig(address="auto"))._connect("auto") == within.gcs_address
    assert asked == [f"ray://127.0.0.1:{port}", f"127.0.0.1:{port}", "auto"]


def test_a_cluster_that_is_not_there(bench: Bench, loop: asyncio.Runner) -> None:
    """That nobody is there is no reason to disconnect this process from the cluster of others."""
    with pytest.raises(ClusterError, match=r"cluster\.address '127\.0\.0\.1:1' cannot be used: .*refused"):
        loop.run(RayCluster(ClusterConfig(address="127.0.0.1:1")).join())
    bench.said.clear()
    assert loop.run(bench.pool.call("versions"))
    assert not bench.said


OWNER = """
import asyncio, json, sys
from pathlib import Path
from flows.errors import ClusterError
from flows.remote.ray import cluster as clusters
from flows.remote.ray.cluster import RayCluster
from flows.remote.ray.pool import RayPool
from flows.round.shard_steps import retry_on_worker_death
from flows.workers.base import everywhere
from flows.workers.judge import JudgeWorker
from pipeline.config import ClusterConfig, ReplicasConfig

async def main():
    given = json.loads(sys.argv[1])
    clusters.HEAD_SECONDS = given["head_seconds"]
    if given["for_all"]:
        everywhere(JudgeWorker.judge)
    config = ReplicasConfig(replicas=1)
    cluster = RayCluster(ClusterConfig(address=given["address"], judge=config))
    pool = RayPool("judge", given["arguments"], given["created"], Path("log"), {}, config, 1, cluster, str)
    try:
        await retry_on_worker_death(lambda _again: pool.call("judge", **given["shard"]))
    except ClusterError as error:
        print(error)
    await pool.stop()

asyncio.run(main())
"""


def owner(bench: Bench, address: str, head_seconds: float = 30.0, *, for_all: bool = False) -> list[str]:
    """The command of a flow that asks one replica for one shard, or for what each replica has to do."""
    given = {
        "address": address, "arguments": bench.arguments, "created": bench.run.created, "shard": bench.shard(0),
        "head_seconds": head_seconds, "for_all": for_all,
    }  # fmt: skip
    return [sys.executable, "-c", OWNER, json.dumps(given)]


@pytest.mark.parametrize(
    "for_all",
    [pytest.param(False, id="a shard"), pytest.param(True, id="what is for all replicas", marks=pytest.mark.nightly)],
)
def test_a_head_that_dies_ends_the_run_with_its_address(bench: Bench, tmp_path: Path, for_all: bool) -> None:
    """Ray itself would let the replica work on for a minute, and then kill the flow's process."""
    bench.hold()
    command = owner(bench, "local", 2.0, for_all=for_all)
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as flow:
        asyncio.run(until(lambda: bench.given))
        family = psutil.Process(flow.pid).children(recursive=True)
        (head,) = (process for process in family if process.name() == "gcs_server")
        head.kill()
        said, _ = flow.communicate()
    assert flow.returncode == 0, said
    assert re.fullmatch(
        r"the head of the Ray cluster at 127\.0\.0\.1:\d+ \(cluster\.address 'local'\) has not answered for 2 s "
        r"\(.*refused\): resume the run, which starts another; what is committed stays\n",
        said,
    )
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_the_only_node_of_a_local_cluster_that_dies_ends_the_run_at_once(bench: Bench, tmp_path: Path) -> None:
    """Its replicas would come back nowhere, and ``cluster.patience_seconds`` is for clusters that others mend."""
    bench.hold()
    with subprocess.Popen(owner(bench, "local"), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as flow:
        asyncio.run(until(lambda: bench.given))
        family = psutil.Process(flow.pid).children(recursive=True)
        (node,) = (process for process in family if process.name() == "raylet")
        node.kill()
        began = time.monotonic()
        said, _ = flow.communicate()
    assert "cluster.address 'local') has died, or its only node has: resume the run, which starts another" in said
    # Seven seconds, of which Ray takes five to disconnect; on a busy machine more, and without this 600.
    assert time.monotonic() - began < 60
    assert psutil.wait_procs(family, timeout=60)[1] == []


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(True, id="a cluster of its own"),
        pytest.param(False, id="a cluster of the user's", marks=pytest.mark.nightly),
    ],
)
def test_nothing_outlives_a_killed_flow(bench: Bench, nodes: Nodes, tmp_path: Path, own: bool) -> None:
    """SIGKILL in the middle of a shard, so that none of the flow's own cleaning up can run."""
    if not own:
        nodes.add()  # the other two are taken
    bench.hold()
    before = {process.pid for process in psutil.process_iter()}
    with subprocess.Popen(owner(bench, "local" if own else nodes.address), cwd=tmp_path) as flow:
        asyncio.run(until(lambda: bench.given))
        tree = [process for process in psutil.process_iter() if process.pid not in before]
        mine = [process for process in tree if _descends(process, flow.pid)] if own else []
        mine += [psutil.Process(pid) for pid in bench.given[0][1:3]]
        assert len(mine) > (6 if own else 1)
        flow.kill()
        flow.wait()
    # Usually within a second.
    assert psutil.wait_procs(mine, timeout=60)[1] == []


def _descends(process: psutil.Process, ancestor: int) -> bool:
    try:
        return ancestor in (parent.pid for parent in process.parents())
    except psutil.NoSuchProcess:
        return False
