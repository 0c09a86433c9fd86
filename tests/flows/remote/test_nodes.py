"""A trainer whose ranks are on two machines, here two processes on loopback: what a lost machine leads to."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from flows.errors import NodeError, WorkerDiedError
from flows.remote.nodes import Nodes
from flows.remote.ranks import meeting_environment, split_address
from flows.remote.worker_process import WorkerProcess
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.store import Store
from support.ranks import family, free_port, gone, listening, probe_inputs
from support.recipes import TINY
from support.workers import use

TESTS = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


@pytest.fixture
def joined(store: Store, address: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``rondo join`` in a process of its own, with its own temporary directory, as another machine has."""
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "flows.cli.main", "join", address, "--root", store.root, "--wait", "60"]
    environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(tmp_path / "elsewhere")}
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(900)
def test_what_happens_to_machines(
    store: Store, address: str, joined: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trainer in three groups: a rank elsewhere is killed, a whole machine is, and then there is none."""
    monkeypatch.chdir(tmp_path)
    inputs = probe_inputs(store)
    recipe = {**TINY, "devices": {"trainer_nodes": 2, "trainer_address": address}}
    arguments = {"root": store.root, "run": "r", "recipe": recipe, "scratch": str(tmp_path)}
    said: list[str] = []
    machines = Nodes(address, 2, 60, said.append)
    worker = WorkerProcess(
        "trainer", arguments, tmp_path / "log", {**ENVIRONMENT, "TMPDIR": str(tmp_path)}, nodes=machines
    )

    def elsewhere() -> list[psutil.Process]:
        (torchrun,) = psutil.Process(joined.pid).children()
        return family(torchrun.pid)

    async def work() -> None:
        probe = await worker.call("probe", **inputs)
        assert probe["rows"] == 1
        here, there = family(worker.pid), elsewhere()
        assert [[rank.environ()["RANK"] for rank in ranks[1:]] for ranks in (here, there)] == [["0"], ["1"]]
        # Nothing listens on other networks, the flow's store included.
        assert listening([psutil.Process(), *here, *there]) == {"127.0.0.1"}
        there[1].kill()
        with pytest.raises(WorkerDiedError, match=r"^machine 2 of the 2 that share the update: its ranks ended with"):
            await ends(worker, inputs)
        assert gone([*here, *there])

        here, there = await started(worker, elsewhere)
        there[1].suspend()  # so that the machine dies in the middle of the work
        asyncio.get_running_loop().call_later(1, lambda: (joined.kill(), there[1].resume()))
        with pytest.raises(
            WorkerDiedError, match=r"^machine 2 of the 2 .* is gone: nothing was heard of it for \d+ s$"
        ):
            await worker.call("probe", **inputs)
        assert gone([*here, *there])

        monkeypatch.setattr(machines, "_wait", 2.0)
        with pytest.raises(NodeError, match=r"^1 of the 2 machines of the update did not join within 2 s: start "):
            await worker.call("probe", **inputs)
        assert said[-1].startswith(f"waiting for 1 of the 2 machines of the update: rondo join {address}")
        # Asked again, it does not wait again.
        before = time.monotonic()
        with pytest.raises(NodeError):
            await worker.call("probe", **inputs)
        assert time.monotonic() - before < 1
        assert worker.starts == 2

    use(worker, work)


async def ends(worker: WorkerProcess, inputs: dict[str, Any]) -> None:
    """Asks until the loss is noticed: an answer may come before, as not every call needs all ranks to the end."""
    while True:
        await worker.call("probe", **inputs)


async def started(worker: WorkerProcess, elsewhere: Any) -> tuple[list[psutil.Process], list[psutil.Process]]:
    await worker.start()
    return family(worker.pid), elsewhere()


HEAD = """
import asyncio, json, sys
from flows.remote.nodes import Nodes
address, work = sys.argv[1], json.loads(sys.argv[2])

async def run():
    nodes = Nodes(address, 3, 60, print)
    forming = asyncio.create_task(nodes.gather(work))
    await asyncio.to_thread(sys.stdin.readline)
    forming.cancel()
    await nodes.close()

asyncio.run(run())
"""


def test_a_head_that_dies_is_waited_for_and_one_that_ends_is_not(
    store: Store, address: str, joined: subprocess.Popen[str]
) -> None:
    """The group stays incomplete here: the machine's part of it begins and ends all the same."""
    store.create_run("r", {})
    devices = {"trainer_nodes": 3, "trainer_address": address}
    work = {"run": "r", "recipe": Recipe.model_validate({**TINY, "devices": devices}).model_dump(mode="json")}
    command = [sys.executable, "-c", HEAD, address, json.dumps(work)]
    assert joined.stdout is not None
    for killed in (True, False):
        with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.PIPE, text=True) as head:
            heard = [joined.stdout.readline() for _ in range(2)]
            assert heard[0] == f"joined {address}\n"
            assert heard[1].startswith("run 'r': machine 2 of 3; log: ")
            (torchrun,) = psutil.Process(joined.pid).children()
            if killed:
                misled = subprocess.run(
                    [sys.executable, "-m", "flows.cli.main", "join", address, "--root", "elsewhere"],
                    env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert "there is no root 'elsewhere'" in misled.stderr
                head.kill()
                assert joined.stdout.readline() == f"the head at {address} is gone; waiting 60 s for it to come back\n"
            else:
                head.communicate("end\n")
        assert gone([torchrun])
    assert joined.stdout.read() == "the run is over\n"
    assert joined.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["127.0.0.1"], "'127.0.0.1' is not HOST:PORT: give a name or an address and a port, as node1:29400"),
        (["127.0.0.1:1", "--wait", "1"], "nobody listens at 127.0.0.1:1 for 1 s: start the run there"),
        # The head of a first run makes the root.
        (["127.0.0.1:1", "--wait", "1", "--root", "not there yet"], "nobody listens at 127.0.0.1:1 for 1 s"),
    ],
)
def test_what_cannot_join_says_why(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "flows.cli.main", "join", *arguments]
    environment = {**os.environ, **ENVIRONMENT, "COLUMNS": "300"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "cannot be listened on"),  # RFC 5737: no one's
        ("127.1", "means 127.0.0.1 here, which no other machine reaches"),  # as Debian's /etc/hosts has its own name
    ],
)
def test_an_address_at_which_nobody_could_join_is_refused(host: str, words: str) -> None:
    with pytest.raises(NodeError, match=rf"^devices\.trainer_address {re.escape(host)}:29400 {re.escape(words)}"):
        asyncio.run(Nodes(f"{host}:29400", 2, 1, print).gather({"run": "r", "recipe": {}}))


def test_a_head_of_another_version_is_left_alone(
    store: Store, address: str, joined: subprocess.Popen[str], tmp_path: Path
) -> None:
    store.create_run("r", {})
    recipe = {**TINY, "devices": {"of_the_future": 1}}

    async def run() -> None:
        head = Nodes(address, 2, 60, print)
        forming = asyncio.create_task(head.gather({"run": "r", "recipe": recipe}))
        assert await asyncio.to_thread(joined.wait, 60) == 1
        forming.cancel()
        await head.close()

    asyncio.run(run())
    assert "has a recipe that this machine does not know (devices.of_the_future)" in (tmp_path / "errors").read_text()


@pytest.mark.parametrize(
    ("address", "parts"),
    [("node1:29400", ("node1", 29400)), ("10.0.0.5:1", ("10.0.0.5", 1)), ("[fd00::5]:29400", ("fd00::5", 29400))],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts
    devices = {"trainer_nodes": 2, "trainer_address": address}
    assert Recipe.model_validate({**TINY, "devices": devices}).devices.trainer_world == 2


def test_what_is_no_address_or_has_none_is_refused() -> None:
    for wrong in ("node1", ":29400", "node1:0", "node1:65536", "node1:x"):
        with pytest.raises(ConfigError, match="is not HOST:PORT"):
            split_address(wrong)
    with pytest.raises(ValidationError, match=r"devices\.trainer_nodes 2 needs devices\.trainer_address"):
        Recipe.model_validate({**TINY, "devices": {"trainer_nodes": 2}})
    devices = {"trainer_nodes": 2, "trainer_address": "node1:29400", "trainer": "cuda:1"}
    with pytest.raises(ValidationError, match=r"devices\.trainer_nodes 2 does not go with devices\.trainer 'cuda:1'"):
        Recipe.model_validate({**TINY, "devices": devices})


def test_ranks_use_the_network_in_which_the_machines_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")  # a user's own choice stays
    found = meeting_environment("127.0.0.1", 29400, "3", "127.0.0.1")
    assert found == {
        "RONDO_MEETING": "tcp://127.0.0.1:29400/3", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "ib0",
    }  # fmt: skip
