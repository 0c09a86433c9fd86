"""Replicas on a Ray cluster of several nodes: what dies costs its shards in flight, and who is slow holds up nobody."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.errors import ClusterError, WorkerDiedError, WorkerError
from flows.process import WorkerProcess
from flows.ray_actor import Replica
from flows.ray_cluster import RayCluster
from flows.ray_pool import RayPool
from flows.versions import packages
from pipeline.config import ClusterConfig, ReplicasConfig
from pipeline.errors import DataError, JudgeError
from pipeline.records import CANDIDATES, PROMPTS, to_table
from storage.manifest import FileRef
from storage.shards import read_table, write_table
from storage.store import Store
from support.ray_nodes import Nodes, ray_nodes
from support.recipes import TINY

pytestmark = pytest.mark.timeout(600)

SECRET = "a-key-that-nobody-logs"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two nodes of one CPU each."""
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
    with ray_nodes(directory) as found:
        found.add(2)
        yield found
    shutil.rmtree(directory, ignore_errors=True)


class Bench:
    """A run whose answers are judged by ``held_judge``, and pools for it."""

    def __init__(self, directory: Path, address: str) -> None:
        self.place = directory / "place"
        self.place.mkdir()
        self.log = directory / "judge.log"
        self.said: list[str] = []
        self._address = address
        self.store = Store.open(directory / "root")
        self.run = self.store.create_run("r", {})
        judge = {"kind": "python", "function": "support.held_judge:length", "options": {"place": str(self.place)}}
        self.arguments = {"root": self.store.root, "run": "r", "recipe": {**TINY, "judge": judge}}
        prompt = {
            "prompt_id": "p", "text": "t", "messages": None, "token_ids": [1], "source": "test",
            "reference_answer": None, "split": "train",
        }  # fmt: skip
        self._prompts = write_table(self.store, "r", 0, "prompts", to_table([prompt], PROMPTS))

    def pool(self, replicas: int = 2, capacity: int = 1, cpus: float = 1.0, patience: float = 120.0) -> RayPool:
        config = ReplicasConfig(replicas=replicas, cpus=cpus)
        cluster = RayCluster(ClusterConfig(address=self._address, judge=config, patience_seconds=patience))
        environment = {"OMP_NUM_THREADS": "1", "A_KEY": SECRET}
        return RayPool(
            "judge",
            self.arguments,
            self.run.created,
            self.log,
            environment,
            config,
            capacity,
            cluster,
            self.said.append,
        )

    def shard(self, number: int, prompt: str = "p") -> dict[str, Any]:
        """The arguments of a call that judges one answer, ``shard-N``."""
        row = {
            "prompt_id": prompt, "candidate": 0, "token_ids": [1], "text": f"shard-{number}", "logprobs": [-1.0],
            "finish_reason": "stop", "seed": 1, "policy": "p",
        }  # fmt: skip
        candidates = write_table(self.store, "r", 1, "candidates", to_table([row], CANDIDATES), number)
        return {
            "prompts": [self._prompts.to_json()], "candidates": candidates.to_json(), "round": 1,
            "stage": "judgments", "shard": number, "judges": [0],
        }  # fmt: skip

    @property
    def given(self) -> list[tuple[str, int, int, int]]:
        """Who has been given what: answer, pids of the worker, of its actor, and of its node; in order of time."""
        notes = sorted((path.name.split() for path in self.place.glob("given *")), key=lambda note: int(note[5]))
        return [(answer, int(pid), int(actor), int(node)) for _, answer, pid, actor, node, _ in notes]

    def hold(self) -> None:
        (self.place / "hold").touch()

    def go(self) -> None:
        (self.place / "hold").unlink()


@pytest.fixture
def bench(tmp_path: Path, nodes: Nodes) -> Bench:
    nodes.add(2 - len(nodes.raylets))
    return Bench(tmp_path, nodes.address)


def use(worker: RayPool | WorkerProcess, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        try:
            return await work()
        finally:
            await worker.stop()

    return asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    """Waits; a test's own limit of time ends it where that never comes."""
    while not condition():
        await asyncio.sleep(0.02)


async def tried_again(pool: RayPool, arguments: dict[str, Any]) -> tuple[Any, int]:
    """The answer, as a step of the flow gets it; and how often it had to be asked for."""
    for tries in (1, 2, 3):
        try:
            return await pool.call("judge", **arguments), tries
        except WorkerDiedError:
            continue
    raise AssertionError("three deaths on one shard")


def test_replicas_do_as_one_process_does(bench: Bench, nodes: Nodes, tmp_path: Path) -> None:
    """Two at a time in each; an error keeps its class and its sentence; no secret reaches Ray's logs."""
    shards = [bench.shard(number) for number in range(8)]
    lost = bench.shard(8, prompt="lost")
    pool = bench.pool(capacity=2)

    async def work() -> list[Any]:
        assert pool.capacity == 4
        await pool.start()
        await until(lambda: pool.replicas == 2)
        with pytest.raises(DataError, match="prompt lost"):
            await pool.call("judge", **lost)
        with pytest.raises(WorkerError, match=r"has no method '_serve'.*judge\.log"):
            await pool.call("_serve")
        return await asyncio.gather(*(pool.call("judge", **shard) for shard in shards))

    files = use(pool, work)
    assert "has no method" in bench.log.read_text()  # the traceback, of a node that may be far away
    assert {node for *_, node in bench.given} == nodes.raylets.keys()
    (tmp_path / "scratch").mkdir()
    one = WorkerProcess("judge", {**bench.arguments, "scratch": str(tmp_path / "scratch")}, tmp_path / "log", {})

    async def alone() -> list[Any]:
        return [await one.call("judge", **shard) for shard in shards]

    for mine, theirs in zip(files, use(one, alone), strict=True):
        tables = [read_table(bench.store, [FileRef.from_json(file)]) for file in (mine, theirs)]
        assert tables[0].drop_columns(["latency"]).equals(tables[1].drop_columns(["latency"]))
    logs = [path for path in Path(nodes.directory).rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) > 10
    assert not [path for path in logs if SECRET.encode() in path.read_bytes()]


def test_a_killed_replica_costs_its_shards_in_flight(bench: Bench) -> None:
    """Those that others hold are done once; a new replica takes the place of the dead one; no process is left."""
    shards = [bench.shard(number) for number in range(6)]
    pool = bench.pool(capacity=2)

    async def work() -> list[tuple[Any, int]]:
        await pool.start()
        await until(lambda: pool.replicas == 2)
        bench.hold()
        calls = [asyncio.create_task(tried_again(pool, shard)) for shard in shards]
        await until(lambda: len({pid for _, pid, *_ in bench.given}) == 2)
        _, worker, actor, _ = bench.given[0]
        os.kill(actor, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(worker))
        await until(lambda: pool.replicas == 1)
        bench.go()
        answers = await asyncio.gather(*calls)
        await until(lambda: pool.replicas == 2)
        return answers

    answers = use(pool, work)
    assert [file["rows"] for file, _ in answers] == [1] * 6
    tries = sorted(tries for _, tries in answers)
    assert tries == [1, 1, 1, 1, 2, 2]  # the dead one held two, though one alone was in its judge's hands
    assert any("has gone; 1 are left" in line for line in bench.said)


def test_a_worker_that_dies_is_started_again_in_its_replica(bench: Bench) -> None:
    pool = bench.pool(replicas=1)

    async def work() -> tuple[Any, int]:
        bench.hold()
        call = asyncio.create_task(tried_again(pool, bench.shard(0)))
        await until(lambda: bench.given)
        os.kill(bench.given[0][1], signal.SIGKILL)
        bench.go()
        return await call

    _, tries = use(pool, work)
    assert tries == 2
    (_, first, actor, _), (_, second, same_actor, _) = bench.given
    assert first != second
    assert actor == same_actor
    with pytest.raises(WorkerError, match="was asked after it had been stopped"):
        asyncio.run(pool.call("versions"))


def test_nodes_that_leave_and_join(bench: Bench, nodes: Nodes) -> None:
    """A node goes with its shard, which the other one does; a new node's replica takes at once what waits."""
    pool = bench.pool()

    async def work() -> list[tuple[Any, int]]:
        await pool.start()
        await until(lambda: pool.replicas == 2)
        bench.hold()
        calls = [asyncio.create_task(tried_again(pool, bench.shard(number))) for number in range(5)]
        await until(lambda: len(bench.given) == 2)
        lost = bench.given[0]
        await asyncio.to_thread(nodes.remove, nodes.raylets[lost[3]])
        await until(lambda: pool.replicas == 1)
        assert not psutil.pid_exists(lost[1])
        assert len(bench.given) == 2
        await asyncio.to_thread(nodes.add)
        await until(lambda: len(bench.given) == 3)  # while the other one is still held
        assert bench.given[2][3] not in {note[3] for note in bench.given[:2]}
        bench.go()
        return await asyncio.gather(*calls)

    assert sorted(tries for _, tries in use(pool, work)) == [1, 1, 1, 1, 2]
    answers = [answer for answer, *_ in bench.given]
    assert sorted(set(answers)) == [f"shard-{number}" for number in range(5)]
    assert len(answers) == 6


def test_a_slow_replica_holds_up_nobody(bench: Bench) -> None:
    """It takes 3 s for a shard, and the other one does what is left of them meanwhile."""
    pool = bench.pool()
    bench.hold()

    async def work() -> None:
        await pool.start()
        await until(lambda: pool.replicas == 2)
        calls = [asyncio.create_task(pool.call("judge", **bench.shard(number))) for number in range(12)]
        await until(lambda: len(bench.given) == 2)
        (bench.place / "slow").write_text(str(bench.given[0][1]))
        bench.go()
        await asyncio.gather(*calls)

    use(pool, work)
    slow = [answer for answer, pid, *_ in bench.given if pid == bench.given[0][1]]
    assert len(slow) == 1
    assert len(bench.given) == 12


def test_a_cluster_without_room_is_not_waited_for_for_ever(bench: Bench) -> None:
    pool = bench.pool(cpus=5, patience=2)
    words = (
        r"no replica of the judge was there for 2 s .*needs 5 CPUs and 0 GPUs, and the cluster has 3 nodes with 0 CPUs"
    )
    with pytest.raises(ClusterError, match=words):
        use(pool, lambda: pool.call("versions"))


def test_a_replica_that_cannot_start_says_why(bench: Bench) -> None:
    """The error of the worker's constructor arrives as it does from a process of one's own."""
    bench.arguments["recipe"]["judge"]["function"] = "support.held_judge:nothing"
    pool = bench.pool()
    with pytest.raises(JudgeError, match=r"'support\.held_judge:nothing' cannot be imported"):
        use(pool, lambda: pool.call("versions"))


def test_a_node_must_see_the_root(bench: Bench, tmp_path: Path) -> None:
    """A directory that is not there, one without the run, and one with another run of the same name."""
    (tmp_path / "empty").mkdir()
    Store.open(tmp_path / "other").create_run("r", {})
    for root in ("nowhere", "empty", "other"):
        arguments = {**bench.arguments, "root": str(tmp_path / root)}
        settings = {
            "kind": "judge", "arguments": arguments, "environment": {}, "capacity": 1, "created": bench.run.created
        }  # fmt: skip
        replica = Replica(json.dumps(settings))
        error = json.loads(asyncio.run(replica.join()))["error"]
        asyncio.run(replica.leave())
        assert error["kind"] == "ConfigError"
        assert f"does not see the root {tmp_path / root} of the flow" in error["message"]
    assert not (tmp_path / "nowhere").exists()


def test_another_version_of_a_package_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.ray_pool.packages", lambda: {**packages(), "torch": "1.0"})
    pool = bench.pool(replicas=1)
    with pytest.raises(ClusterError, match=r"torch \S+, not 1\.0"):
        use(pool, lambda: pool.call("versions"))


def test_without_a_cluster(bench: Bench) -> None:
    bench._address = "127.0.0.1:1"
    pool = bench.pool()
    with pytest.raises(ClusterError, match=r"cluster\.address '127\.0\.0\.1:1' cannot be used"):
        use(pool, lambda: pool.call("versions"))


OWNER = """
import asyncio, json, sys
from pathlib import Path
from flows.ray_cluster import RayCluster
from flows.ray_pool import RayPool
from pipeline.config import ClusterConfig, ReplicasConfig

async def main():
    given = json.loads(sys.argv[1])
    config = ReplicasConfig(replicas=1)
    cluster = RayCluster(ClusterConfig(address=given["address"], judge=config))
    pool = RayPool("judge", given["arguments"], given["created"], Path("log"), {}, config, 1, cluster, str)
    await pool.call("judge", **given["shard"])

asyncio.run(main())
"""


@pytest.mark.parametrize("own", [True, False], ids=["a cluster of its own", "a cluster of the user's"])
def test_nothing_outlives_a_killed_flow(bench: Bench, nodes: Nodes, tmp_path: Path, own: bool) -> None:
    """SIGKILL in the middle of a shard, so that none of the flow's own cleaning up can run."""
    given = {
        "address": "local" if own else nodes.address, "arguments": bench.arguments, "created": bench.run.created,
        "shard": bench.shard(0),
    }  # fmt: skip
    bench.hold()
    before = {process.pid for process in psutil.process_iter()}
    with subprocess.Popen([sys.executable, "-c", OWNER, json.dumps(given)], cwd=tmp_path) as owner:
        asyncio.run(until(lambda: bench.given))
        tree = [process for process in psutil.process_iter() if process.pid not in before]
        mine = [process for process in tree if _descends(process, owner.pid)] if own else []
        mine += [psutil.Process(pid) for pid in bench.given[0][1:3]]
        assert len(mine) > (6 if own else 1)
        owner.kill()
        owner.wait()
    # Usually within a second; Ray looks every few seconds for owners that are gone.
    assert psutil.wait_procs(mine, timeout=60)[1] == []


def _descends(process: psutil.Process, ancestor: int) -> bool:
    try:
        return ancestor in (parent.pid for parent in process.parents())
    except psutil.NoSuchProcess:
        return False
