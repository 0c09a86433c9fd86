"""Two writers on one run, in processes of their own: exactly one wins each entry, the other stops and says why."""

import multiprocessing
import os
import signal
import time
import uuid
from collections import defaultdict
from multiprocessing.context import ForkServerContext
from pathlib import Path

import psutil
import pytest
from store_races import files_below, pause_in_commit, race, write_until_shut_out

from storage.errors import RunBusyError
from storage.log.manifest import Key
from storage.log.store import Store

RACES = 100


def test_one_of_three_processes_gets_the_run(local: Store, processes: ForkServerContext) -> None:
    for number in range(RACES):
        local.create_run(f"race{number}", {})
    barrier, results = processes.Barrier(3, timeout=300), processes.Queue()
    children = [processes.Process(target=race, args=(local.root, RACES, barrier, results)) for _ in range(3)]
    for child in children:
        child.start()
    outcomes = defaultdict(list)
    for _ in range(3 * RACES):
        number, outcome, pid, detail = results.get(timeout=300)
        outcomes[number].append((outcome, pid, detail))
    for child in children:
        child.join(30)
    for number in range(RACES):
        winners = [item for item in outcomes[number] if item[0] == "won"]
        losers = [item for item in outcomes[number] if item[0] == "busy"]
        assert (len(winners), len(losers)) == (1, 2)
        (_, pid, entry_number) = winners[0]
        for _, _, message in losers:
            assert f"run 'race{number}' is written by process {pid} on host" in message
            assert "wait for it, or stop it" in message
        run = local.run(f"race{number}")
        assert [(entry.number, entry.meta) for entry in run.entries()] == [(entry_number, {"pid": pid})]
        assert run.state == "stopped"


def test_a_writer_that_is_taken_over_while_it_writes(local: Store, processes: ForkServerContext) -> None:
    """The first one commits as fast as it can; the second comes in between, and from its first entry on has the log."""
    for number in range(RACES):
        local.create_run(f"race{number}", {})
    barrier, results = processes.Barrier(2, timeout=300), processes.Queue()
    child = processes.Process(target=write_until_shut_out, args=(local.root, RACES, barrier, results))
    child.start()
    for number in range(RACES):
        barrier.wait()
        time.sleep(number % 10 * 1e-3)  # after more or fewer entries of the first
        with local.run(f"race{number}").writer(take_over=True) as writer:
            for shard in range(3):
                writer.commit(Key(2, "candidates", shard), [], {"writer": "second"})
            ended, shards, message = results.get(timeout=300)
        assert ended == number
        assert f"run 'race{number}' was taken over by process {os.getpid()}" in message
        assert "once the other one is done, " in message
        written = sorted(local.run(f"race{number}").entries(), key=lambda entry: entry.number)
        assert [entry.meta["writer"] for entry in written] == ["first"] * shards + ["second"] * 3
        barrier.wait()
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize("backend", ["local", "s3"])
def test_a_paused_writer_cannot_overwrite_when_it_is_revived(
    request: pytest.FixtureRequest, disk: Path, backend: str
) -> None:
    """SIGSTOP at the worst moment, right before it publishes; SIGCONT after another one has published that number."""
    if backend == "s3":
        request.getfixturevalue("s3_environment")
    root = str(disk) if backend == "local" else f"s3://rondo/{uuid.uuid4().hex}"
    store = Store.open(root)
    store.create_run("a", {})
    processes = multiprocessing.get_context("spawn")  # with the variables that lead to the bucket
    results = processes.Queue()
    child = processes.Process(target=pause_in_commit, args=(root, results))
    child.start()
    assert child.pid is not None
    paused = psutil.Process(child.pid)
    deadline = time.monotonic() + 300
    while paused.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with (
        pytest.raises(
            RunBusyError, match=r"run 'a' is written by process \d+ on host elsewhere.*'rondo resume a --take-over'"
        ),
        store.run("a").writer(),
    ):
        pass
    with store.run("a").writer(take_over=True) as writer:
        writer.commit(Key(1, "candidates", 1), [], {"writer": "second"})
        writer.finish_round(1, {"writer": "second"})
        before = _contents(store, disk)
        os.kill(child.pid, signal.SIGCONT)
        messages = [results.get(timeout=300) for _ in range(3)]
        child.join(30)
        assert _contents(store, disk) == before
    for message in messages:
        assert f"run 'a' was taken over by process {os.getpid()}" in message
    assert [entry.meta["writer"] for entry in store.run("a").entries()] == ["first", "second"]
    assert [entry.meta["writer"] for entry in store.run("a").rounds()] == ["second"]


def test_a_paused_writer_on_this_machine_is_not_taken_for_dead(disk: Path) -> None:
    store = Store.open(disk)
    store.create_run("a", {})
    here = store.run("a")
    with (
        here.writer(),
        pytest.raises(RunBusyError, match="wait for it, or stop it"),
        store.run("a").writer(take_over=True),
    ):
        pass


def _contents(store: Store, disk: Path) -> dict[str, bytes]:
    if store.is_local:
        return files_below(disk)
    return {key: store.objects.read(key) for key in store.objects.keys("runs")}
