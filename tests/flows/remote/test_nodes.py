"""A trainer whose ranks are on two machines, here two processes on loopback: what a lost machine leads to."""

import asyncio
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from flows.errors import NodeError, WorkerDiedError
from flows.remote.torchrun import RANKS, Torchrun, interfaces, split_address
from flows.remote.worker_process import WorkerProcess
from pipeline.errors import ConfigError, RondoError
from pipeline.recipe import Recipe
from storage.log.store import Store
from support.ranks import family, free_port, gone, other_machine, probe_inputs, switch_off, torchrun_elsewhere
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


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_what_happens_to_machines(store: Store, address: str, tmp_path: Path) -> None:
    """One trainer in three groups: a rank elsewhere is killed, a whole machine is, and then there is none."""
    inputs = probe_inputs(store)
    said: list[str] = []
    worker, ranks = trainer(store, address, tmp_path, said)

    async def work(machine: psutil.Process) -> None:
        probe = await worker.call("probe", **inputs)
        assert probe["rows"] == 1
        here, there = family(worker.pid), family(machine.children()[0].pid)
        assert [len(here), len(there)] == [2, 2]
        assert said == [f"waiting for 1 other machine of the update at {address}, each with torchrun -m {RANKS}"]
        there[1].kill()
        with pytest.raises(WorkerDiedError, match=r"^one of the 2 machines that share the update was lost: "):
            await ends(worker, inputs)
        assert gone([*here, *there])

        await worker.start()
        here, there = family(worker.pid), family(machine.children()[0].pid)
        there[1].suspend()  # so that the machine dies in the middle of the work
        asyncio.get_running_loop().call_later(1, switch_off, machine)
        with pytest.raises(WorkerDiedError, match=r"^one of the 2 machines that share the update was lost: "):
            await worker.call("probe", **inputs)
        assert gone([*here, *there])

        ranks.wait = 2.0
        with pytest.raises(NodeError, match=r"^1 other machine of the update did not come to .* within 2 s: start "):
            await worker.call("probe", **inputs)
        # Asked again, it does not wait again.
        before = time.monotonic()
        with pytest.raises(NodeError):
            await worker.call("probe", **inputs)
        assert time.monotonic() - before < 1
        assert worker.starts == 3

    with other_machine(torchrun_elsewhere(address, "--root", store.root), elsewhere(tmp_path)) as machine:
        use(worker, lambda: work(machine))


async def ends(worker: WorkerProcess, inputs: dict[str, Any]) -> None:
    """Asks until the loss is noticed: an answer may come before, as not every call needs all ranks to the end."""
    while True:
        await worker.call("probe", **inputs)


@pytest.mark.timeout(900)
def test_machines_leave_in_order_with_the_run(store: Store, address: str, tmp_path: Path) -> None:
    """Torchrun there ends with success, and nothing is left of its local files."""
    inputs = probe_inputs(store)
    worker, _ = trainer(store, address, tmp_path, [])
    other = subprocess.Popen(torchrun_elsewhere(address), env={**os.environ, **elsewhere(tmp_path)})
    use(worker, lambda: worker.call("probe", **inputs))
    assert other.wait(60) == 0
    assert not list((tmp_path / "elsewhere").glob("rondo-*"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("arguments", "ranks", "words"),
    [
        (["--root", "not there"], 1, "there is no root 'not there'"),
        pytest.param(
            [],
            2,
            "with --nproc-per-node=2, and devices.trainer_ranks is 1: start torchrun there with as many",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_an_error_of_another_machine_is_the_runs(
    arguments: list[str], ranks: int, words: str, store: Store, address: str, tmp_path: Path
) -> None:
    store.create_run("r", {})
    worker, _ = trainer(store, address, tmp_path, [])
    command = torchrun_elsewhere(address, *arguments, ranks=ranks)
    other = subprocess.Popen(command, env={**os.environ, **elsewhere(tmp_path)})
    with pytest.raises(RondoError, match=re.escape(words)):
        use(worker, worker.start)
    assert other.wait(60) != 0


def trainer(store: Store, address: str, scratch: Path, said: list[str]) -> tuple[WorkerProcess, Torchrun]:
    recipe = {**TINY, "devices": {"cpu_threads": 1, "trainer_nodes": 2, "trainer_address": address}}
    arguments = {"root": store.root, "run": "r", "recipe": recipe, "scratch": str(scratch)}
    ranks = Torchrun(1, 2, address, 300, said.append)
    return WorkerProcess("trainer", arguments, scratch / "log", {**ENVIRONMENT, "TMPDIR": str(scratch)}, ranks), ranks


def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of the other machine: a temporary directory of its own."""
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    return {**ENVIRONMENT, "TMPDIR": str(tmp_path / "elsewhere")}


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "cannot be listened on"),  # RFC 5737: no one's
        ("127.1", "means 127.0.0.1 here, which no other machine reaches"),  # as Debian's /etc/hosts has its own name
    ],
)
def test_an_address_at_which_nobody_could_come_is_refused(host: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=rf"^devices\.trainer_address {re.escape(host)}:29400 {re.escape(words)}"):
        Torchrun(1, 2, f"{host}:29400").prepare(str(tmp_path))


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
    assert interfaces("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "ib0"}
