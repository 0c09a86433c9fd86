"""What is removed on purpose, and that nothing else ever is: pruning, sweeping, deleting, at every point of a crash."""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_faults import Crash, faulty, hold, killed_prune

from flows.analysis.pruning import plan as plan_pruning
from flows.analysis.pruning import prune_to as prune
from flows.analysis.pruning import rounds_with_weights
from flows.analysis.pruning import sweep as sweep_command
from flows.registry.resume_check import WEIGHT_STAGES, check_inputs, weights_of_next_round
from flows.run.fork_history import import_parent_rounds
from storage.errors import (
    CorruptEntryError,
    DamagedFileError,
    DroppedFileError,
    RunBusyError,
    RunExistsError,
    RunHasForksError,
    RunNotFoundError,
)
from storage.log.manifest import Entry, Key
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import NAMES_UNTIL
from storage.objects import layout
from storage.retention.prune import create_fork, delete_run
from storage.retention.sweep import Stray, find_strays, sweep
from storage.tables.checkpoints import local_directory, stage_directory
from storage.tables.shards import read_table, write_table
from support.kept_run import WARM_START, add_rounds, add_table, kept_fork, kept_run, verify, weights

ActAs = Callable[[str], None]
LATER = timedelta(days=30)


@pytest.fixture
def memory() -> Store:
    """For what does not depend on the backend: S3, as moto serves it, takes a hundred times as long."""
    return Store.open("memory://")


def strays(store: Store, *, after: timedelta = LATER, grace: timedelta = timedelta(hours=24)) -> list[Stray]:
    """What a sweep finds so much later."""
    return find_strays(store, datetime.now(UTC) + after, grace)


def data_files(store: Store) -> set[str]:
    """The files of rounds and the shared ones, named or not."""
    found = [item.key for top in ("runs", "shared") for item in store.objects.listing(top)]
    return {key for key in found if "/rounds/" in key or (key.startswith("shared/") and "manifest" not in key)}


def named(store: Store) -> set[str]:
    """The files that the runs name and have not given up."""
    runs = [store.run(name) for name in store.run_names()]
    return {
        file.path for run in runs for entry in run.entries() for file in entry.files if file.path not in run.dropped
    }


def test_pruned_weights_are_gone_and_tables_stay(store: Store, tmp_path: Path) -> None:
    run = kept_run(store, "kept", 4)
    before = {entry.key: entry.files for entry in run.entries()}
    planned = plan_pruning(store, run, {2})
    assert data_files(store) == named(store), "a plan changes nothing"
    done = prune(store, run, {2})
    assert done == planned
    assert {(item.round, item.stage) for item in done.removals} == {
        (number, stage) for number in (1, 3) for stage in ("checkpoint", "optimizer", "ema")
    }
    assert data_files(store) == named(store)
    run = store.run("kept")
    assert rounds_with_weights(run) == [0, 2, 4]
    assert {entry.key: entry.files for entry in run.entries()} == before, "the log still says what there was"
    for entry in run.entries():
        if entry.key is not None and entry.key.stage not in WEIGHT_STAGES:
            read_table(store, entry.files)
    for number in (0, 2, 4):
        local_directory(store, run.files(number, "checkpoint"), tmp_path)
    gone = "the weights of round 3 of run 'kept' were pruned; rounds whose weights are there: 0, 2, 4"
    with pytest.raises(DroppedFileError, match=gone):
        local_directory(store, run.files(3, "checkpoint"), tmp_path)
    assert prune(store, run, {2}).removals == (), "a second time there is nothing left to do"
    assert run.state == "stopped"


def test_the_policy_that_samples_the_next_round_is_kept(local: Store) -> None:
    """In a run of staleness 1 that is the one before: of the newest round, and of any other that is kept."""
    run = kept_run(local, "kept", 6, recipe={"name": "kept", "staleness": 1})
    prune(local, run, {3})
    run = local.run("kept")
    assert rounds_with_weights(run) == [0, 2, 3, 5, 6]
    there = {(entry.round, entry.key.stage) for entry in run.entries() if entry.key and _is_there(run, entry)}
    for stage in ("optimizer", "ema"):
        assert {round for round, kept in there if kept == stage} == {3, 6}, "nobody reads those of who only samples"
    check_inputs(local, run)
    check_inputs(local, run, 3)
    check_inputs(local, run, 5, 0, unread=("optimizer", "ema"))
    with pytest.raises(DroppedFileError, match="the files of stage 'optimizer' of round 5 of run 'kept' were pruned"):
        check_inputs(local, run, 5, 0)
    with pytest.raises(DroppedFileError, match="the weights of round 4 of run 'kept' were pruned"):
        check_inputs(local, run, 5, unread=("optimizer", "ema"))
    (path,) = [file.path for file in run.files(5, "probe")]
    local.objects.delete([path])
    with pytest.raises(DamagedFileError, match=f"{path} is missing"):
        check_inputs(local, local.run("kept"))


def _is_there(run: Run, entry: Entry) -> bool:
    return bool(entry.files) and not any(file.path in run.dropped for file in entry.files)


def test_a_pruning_while_a_fork_is_checked_leaves_none_without_its_files(memory: Store) -> None:
    """What a fork of staleness 1 needs is there when that is checked, and given up by the time that it is made."""
    run = kept_run(memory, "kept", 4, recipe={"name": "kept", "staleness": 1})
    check_inputs(memory, run, 3)
    needed = weights_of_next_round(run, 3, 1)
    prune(memory, memory.run("kept"), ())
    for parent in (run, memory.run("kept")):  # as it was read before, and as it is
        with pytest.raises(DroppedFileError, match="of run 'kept' were pruned"):
            create_fork(memory, parent, 3, "fork", {}, needed)
    assert memory.run_names() == ["kept"]
    assert memory.objects.listing("runs/fork") == []


def test_pruning_frees_what_it_says(local: Store) -> None:
    run = kept_run(local, "kept", 4)
    size = sum(item.bytes for item in local.objects.listing("runs/kept/rounds"))
    done = prune(local, run, ())
    assert size - sum(item.bytes for item in local.objects.listing("runs/kept/rounds")) == sum(
        item.freed for item in done.removals
    )
    assert not [path for path in Path(local.root).rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_weights_that_were_made_the_newest_again_are_removed_once(local: Store) -> None:
    """Round 2 ended with the first of two checkpoints, whose entry stands before and behind that of the other."""
    run = kept_run(local, "kept", 1)
    with run.writer() as writer:
        made = [
            writer.commit(Key(2, "checkpoint", None, text), weights(local, run, 2, "checkpoint"), {"policy": text})
            for text in "xy"
        ]
        writer.renew(made[0])
        writer.finish_round(2, {})
        add_rounds(local, run, writer, 3)
    assert run.files(2, "checkpoint") == list(made[0].files)
    removed = [file for item in plan_pruning(local, run, ()).removals if item.round == 2 for file in item.files]
    assert sorted(file.path for file in removed) == sorted(file.path for entry in made for file in entry.files)
    prune(local, run, ())
    assert data_files(local) == named(local)


def test_the_base_of_an_adapter_is_kept(local: Store) -> None:
    """Round 2 is a whole checkpoint, the rounds after it are adapters on it."""
    run = kept_run(local, "kept", 2)
    with run.writer() as writer:
        for number in (3, 4):
            with stage_directory(local, "kept", number, "checkpoint") as staged:
                (staged.path / "adapter_config.json").write_text("{}")
                (staged.path / "adapter_model.safetensors").write_bytes(bytes([number]))
            writer.commit(Key(number, "checkpoint"), staged.files)
            writer.finish_round(number, {})
    prune(local, run, ())
    assert rounds_with_weights(local.run("kept")) == [0, 2, 4]


def test_tombstones_are_known_without_the_whole_log(memory: Store) -> None:
    run = kept_run(memory, "kept", 3)
    prune(memory, run, ())
    with run.writer() as writer:
        add_rounds(memory, run, writer, 5)
    memory.objects.delete([layout.entry_key("kept", 2)])  # an old entry: whoever reads the whole log stops here
    reader = memory.run("kept")
    assert reader.dropped.keys() == run.dropped.keys()
    assert len(reader.dropped) == 2 * 3 * 3, "checkpoint, optimizer and average of rounds 1 and 2"


def test_the_running_flow_drops(store: Store, tmp_path: Path) -> None:
    """The states of an update, after their round is finished and before; the writer goes on."""
    run = kept_run(store, "kept", 1)
    with run.writer() as writer:
        steps = [weights(store, run, 2, "update_state") for _ in range(2)]
        for step, files in enumerate(steps):
            writer.commit(Key(2, "update_state", step), files)
        assert writer.drop(steps[0], "superseded") is not None
        add_rounds(store, run, writer, 2)
        assert writer.drop(steps[1], "superseded") is not None
        assert writer.drop(steps[1], "superseded") is None, "they are dropped already"
        add_rounds(store, run, writer, 3)
    assert data_files(store) == named(store)
    for reader in (run, store.run("kept")):
        assert reader.dropped.keys() == {file.path for files in steps for file in files}
        with pytest.raises(DroppedFileError, match=r"files of stage 'update_state' of round 2 .* were superseded"):
            local_directory(store, steps[1], tmp_path)
    assert verify(store, "kept").damages == ()


def test_a_dropped_table_is_told_apart_from_a_missing_one(memory: Store) -> None:
    run = kept_run(memory, "kept", 1)
    files = run.files(1, "metrics")
    with run.writer() as writer:
        writer.drop(files, "removed by hand")
    with pytest.raises(DroppedFileError, match="stage 'metrics' of round 1 of run 'kept' were removed by hand"):
        read_table(memory, files)


def test_killed_at_every_write_of_a_pruning(act_as: ActAs) -> None:
    """What was published is whole; what is left over is swept without waiting, and the next pruning ends the work."""
    store = Store.open("memory://")
    for at in count():
        name = f"kept{at}"
        run = kept_run(store, name, 2)
        act_as("dead")
        try:
            prune(broken := faulty(store, at), broken.run(name), ())
            crashed = False
        except Crash:
            crashed = True
        act_as("self")
        assert verify(store, name).damages == ()
        run = store.run(name)
        if not crashed:
            break
        if run.dropped:
            assert rounds_with_weights(run) == [0, 2]
            with pytest.raises(DroppedFileError, match="pruned"):
                create_fork(store, run, 1, "fork", {}, run.files(1, "checkpoint"))
        prune(store, run, ())
        sweep(store, strays(store, after=timedelta(0)))
        assert data_files(store) == named(store), at
        assert rounds_with_weights(store.run(name)) == [0, 2]
    assert at > 3 + 9, "the session and its probe, the tombstone, and the nine files of round 1, at least"


def test_killed_for_good(disk: Path, processes) -> None:
    """SIGKILL between the tombstone and the removal of the second file."""
    store = Store.open(disk / "root")
    kept_run(store, "kept", 2)
    child = processes.Process(target=killed_prune, args=(store.root, 4))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    left = data_files(store) - named(store)
    assert len(left) == 8, "one of nine was removed"
    assert {stray.path for stray in strays(store, after=timedelta(0))} == left
    assert {stray.why for stray in strays(store, after=timedelta(0))} == {"dropped"}
    assert verify(store, "kept").damages == ()
    sweep(store, strays(store, after=timedelta(0)))
    assert data_files(store) == named(store)


def test_pruning_needs_the_writer(disk: Path, processes) -> None:
    """While another process writes, nothing is pruned, deleted or changed."""
    store = Store.open(disk / "root")
    run = kept_run(store, "kept", 2)
    barrier = processes.Barrier(2, timeout=300)
    child = processes.Process(target=hold, args=(store.root, "kept", barrier))
    child.start()
    barrier.wait()
    for act in (lambda: prune(store, run, ()), lambda: delete_run(store, "kept")):
        with pytest.raises(RunBusyError, match=f"run 'kept' is written by process {child.pid}"):
            act()
    barrier.wait()
    child.join(60)
    assert data_files(store) == named(store)
    assert len(prune(store, run, ()).removals) == 3


def test_a_writer_that_wakes_up_after_a_pruning_is_fenced(memory: Store, act_as: ActAs) -> None:
    kept_run(memory, "kept", 2)
    act_as("dead")
    sleeper = memory.run("kept")
    with sleeper.writer() as writer:
        act_as("self")
        prune(memory, memory.run("kept"), ())
        with pytest.raises(RunBusyError, match="taken over"):
            writer.drop(sleeper.files(2, "checkpoint"), "superseded")
    assert rounds_with_weights(memory.run("kept")) == [0, 2], "what the sleeper wanted gone is there"
    assert verify(memory, "kept").damages == ()


def test_forks_keep_what_they_name(memory: Store, tmp_path: Path) -> None:
    """Of a fork, and of a fork of a fork; each may give up what it inherited, and then it can go."""
    run = kept_run(memory, "kept", 4)
    first = kept_fork(memory, run, 2, "first", 4)
    second = kept_fork(memory, first, 3, "second", 4)
    done = prune(memory, run, ())
    assert {item.round for item in done.removals} == {3}
    assert done.for_forks == (1, 2)
    assert done.forks == ("first", "second")
    assert {item.round for item in prune(memory, first, ()).removals} == set(), "second names its rounds 1 to 3"
    given_up = prune(memory, second, ())
    assert {item.round for item in given_up.removals} == {1, 2, 3}
    assert sum(item.freed for item in given_up.removals) == 0, "they are files of other runs"
    prune(memory, first, ())
    assert {item.round for item in prune(memory, run, ()).removals} == {1, 2}
    for name in ("kept", "first", "second"):
        assert rounds_with_weights(memory.run(name)) == [0, 4]
        assert verify(memory, name).damages == ()
    assert data_files(memory) == named(memory)


def test_a_fork_that_has_not_begun_keeps_its_past(memory: Store) -> None:
    run = kept_run(memory, "kept", 4)
    child = create_fork(memory, run, 2, "fork", {})
    assert {item.round for item in prune(memory, run, ()).removals} == {3}
    assert [stray for stray in strays(memory) if stray.why != "dropped"] == []
    with child.writer() as writer:
        import_parent_rounds(memory, child, writer)
    assert verify(memory, "fork").damages == ()


def test_a_fork_of_completions_keeps_their_rounds_until_it_has_its_own(memory: Store) -> None:
    """It starts from round 0, and will name weights of the rounds whose completions it was given."""
    run = kept_run(memory, "kept", 4)
    create_fork(memory, run, 0, "fork", {NAMES_UNTIL: 2})
    assert {item.round for item in prune(memory, run, ()).removals} == {3}
    assert [stray for stray in strays(memory) if stray.why != "dropped"] == []


def test_a_fork_that_was_killed_while_it_began_keeps_its_past(memory: Store) -> None:
    run = kept_run(memory, "kept", 4)
    child = create_fork(memory, run, 3, "fork", {})
    with child.writer() as writer:
        for entry in run.entries(0):
            assert entry.key is not None
            writer.commit(entry.key, entry.files, entry.meta)
        writer.finish_round(0, run.rounds()[0].meta)
    done = prune(memory, run, ())
    assert (done.removals, done.for_forks) == ((), (1, 2, 3))
    assert strays(memory) == []
    with child.writer() as writer:
        import_parent_rounds(memory, child, writer)
    assert rounds_with_weights(child) == [0, 1, 2, 3]
    assert verify(memory, "fork").damages == ()


@pytest.mark.parametrize(
    "parent",
    ["kept", {"run": "kept"}, {"run": "kept", "round": -1}, {"run": "kept", "round": True}, {"run": 1, "round": 1}],
)
def test_nothing_goes_where_a_header_does_not_say_whose_fork_it_is(memory: Store, parent: object) -> None:
    run = kept_run(memory, "kept", 2)
    memory.create_run("fork", {"parent": parent})
    for remove in (lambda: prune(memory, run, ()), lambda: delete_run(memory, "kept"), lambda: strays(memory)):
        with pytest.raises(CorruptEntryError, match="the header names a parent as"):
            remove()
    assert data_files(memory) == named(memory)


def test_what_a_fork_gives_up_of_its_past_may_go(memory: Store) -> None:
    """As soon as it has taken its past over: it needs no round of its own for that."""
    run = kept_run(memory, "kept", 4)
    fork = kept_fork(memory, run, 3, "fork", 3)
    assert {item.round for item in prune(memory, fork, ()).removals} == {1, 2}
    done = prune(memory, run, ())
    assert ({item.round for item in done.removals}, done.for_forks) == ({1, 2}, (3,))
    assert data_files(memory) == named(memory)


def test_a_fork_of_a_pruned_run(memory: Store) -> None:
    """It takes over what is there, and what is not as not being there."""
    run = kept_run(memory, "kept", 3)
    prune(memory, run, ())
    fork = kept_fork(memory, run, 3, "fork", 4)
    assert rounds_with_weights(fork) == [0, 3, 4]
    found = verify(memory, "fork")
    assert (found.damages, found.newest_good) == ((), 4)
    with pytest.raises(DroppedFileError, match=r"weights of round 2 of run 'fork' were pruned; .* there: 0, 3, 4"):
        create_fork(memory, fork, 2, "late", {}, fork.files(2, "checkpoint"))
    assert memory.run_names() == ["fork", "kept"]


@pytest.mark.parametrize("purpose", ["prune", "delete"])
def test_no_fork_while_the_parent_is_worked_on(memory: Store, purpose: str) -> None:
    run = kept_run(memory, "kept", 2)
    busy = pytest.raises(RunBusyError, match=f"cannot be forked while it is being {purpose}d: wait")
    with memory.run("kept").writer(meta={"purpose": purpose}), busy:
        create_fork(memory, run, 2, "fork", {})
    assert memory.run_names() == ["kept"]
    create_fork(memory, run, 2, "fork", {})


def test_sweeping_takes_what_nobody_names(store: Store) -> None:
    run = kept_run(store, "kept", 1)
    orphans = {write_table(store, "kept", 2, "candidates", read_table(store, run.files(1, "metrics"))).path}
    orphans |= {file.path for file in weights(store, run, 2, "checkpoint")}
    abandoned = f"shared/{WARM_START[0]}/{WARM_START[1]}/{'0' * 32}/model.safetensors"
    half = f"shared/{WARM_START[0]}/{'f' * 16}/{'0' * 32}/model.safetensors"
    others = {"runs/notes.txt", "runs/kept/report.html", "runs/kept/process-logs/judge.log", "x/y/z"}
    others |= {"runs/my notes/a/b.txt"}
    for key in {abandoned, half, *others}:
        store.objects.create(key, b"x")
    orphans |= {abandoned, half}
    assert strays(store, after=timedelta(hours=23)) == []
    assert strays(store, after=timedelta(hours=-1), grace=timedelta(0)) == [], "a clock that is behind sweeps nothing"
    found = strays(store, after=timedelta(hours=25))
    assert {stray.path: stray.why for stray in found} == dict.fromkeys(orphans, "unnamed")
    sweep(store, found)
    assert data_files(store) == named(store)
    assert strays(store) == []
    assert all(store.objects.size(key) == 1 for key in others)
    assert verify(store, "kept").damages == ()


def test_a_run_that_is_being_written_keeps_what_it_writes(memory: Store) -> None:
    """However long that takes: a checkpoint of many bytes to a slow bucket may be a day old before it has a name."""
    run = kept_run(memory, "kept", 1)
    idle = kept_run(memory, "idle", 1)
    with run.writer() as writer:
        in_flight = weights(memory, run, 2, "checkpoint")
        assert strays(memory, after=timedelta(minutes=59), grace=timedelta(0)) == []
        left = {file.path for file in weights(memory, idle, 2, "checkpoint")}
        found = strays(memory, after=timedelta(minutes=59), grace=timedelta(0))
        assert {stray.path for stray in found} == left, "nobody writes to the other run"
        sweep(memory, found)
        assert strays(memory, grace=timedelta(0)) == []
        writer.commit(Key(2, "checkpoint"), in_flight)
        assert strays(memory, grace=timedelta(0)) == []
    assert len(strays(memory, grace=timedelta(0))) == 0


def test_a_run_that_is_being_written_gives_up_what_was_left_before(memory: Store, monkeypatch) -> None:
    """Its writer, on another machine, began an hour after these files were written: none of them is its own."""
    run = kept_run(memory, "kept", 1)
    left = {file.path for file in weights(memory, run, 2, "checkpoint")}
    written = memory.objects.written
    monkeypatch.setattr(memory.objects, "written", lambda key: written(key) + timedelta(hours=1))
    with run.writer():
        assert {stray.path for stray in strays(memory, after=timedelta(hours=25))} == left


def test_a_clock_that_is_wrong_counts_no_age(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweeper's is two days ahead: what a run left a moment ago stays, and the difference is said."""
    run = kept_run(store, "kept", 1)
    left = weights(store, run, 2, "checkpoint")
    before = {item.key for item in store.objects.listing("shared")}
    monkeypatch.setattr("flows.analysis.pruning.existing_store", lambda root: store)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=2)

    said: list[str] = []
    assert sweep_command(store.root, "24h", dry_run=False, say=said.append) == []
    assert said == []
    monkeypatch.setattr("flows.analysis.pruning.datetime", Ahead)
    assert sweep_command(store.root, "24h", dry_run=False, say=said.append) == []
    (line,) = said
    assert re.fullmatch(r"this machine's clock is (2 days, 0:00:0\d|1 day, 23:59:5\d) ahead of that of .*", line)
    assert all(store.objects.size(file.path) for file in left)
    assert {item.key for item in store.objects.listing("shared")} == before, "what the clock was read from is gone"


def test_a_file_with_the_time_of_its_original_is_as_old_as_it_is_here(local: Store) -> None:
    """As a tokenizer that was copied with its times into a checkpoint in the making."""
    run = kept_run(local, "kept", 1)
    (old, *_) = weights(local, run, 2, "checkpoint")
    os.utime(local.objects.local_path(old.path), (0, 0))
    assert strays(local, after=timedelta(hours=23)) == []
    assert old.path in {stray.path for stray in strays(local, after=timedelta(hours=25))}


def test_a_warm_start_that_a_run_is_writing_is_kept(memory: Store) -> None:
    """Its files have no manifest yet. Swept away, they would be named by one that stops every run with that start."""
    run = kept_run(memory, "kept", 1)
    in_flight = f"shared/{WARM_START[0]}/{'f' * 16}/{'0' * 32}/model.safetensors"
    memory.objects.create(in_flight, b"x")
    with run.writer():
        assert strays(memory, after=timedelta(minutes=59), grace=timedelta(0)) == []
        assert strays(memory, grace=timedelta(0)) == []
    assert [stray.path for stray in strays(memory, grace=timedelta(0))] == [in_flight], "its writer is gone"


def test_unnamed_files_of_a_killed_writer_on_a_disk(local: Store) -> None:
    """Names that no listing of the log shows, because a writer died before it gave them their own."""
    kept_run(local, "kept", 1)
    staged = Path(local.root) / "runs/kept/log/0000000099.json-0123#1"
    staged.write_bytes(b"x")
    assert [stray.path for stray in strays(local)] == ["runs/kept/log/0000000099.json-0123#1"]
    sweep(local, strays(local))
    assert not staged.exists()


def test_what_is_left_of_a_deleted_run_goes_with_its_directory(local: Store) -> None:
    for name in ("gone", "kept"):
        kept_run(local, name, 1)
    local.objects.delete([layout.entry_key("gone", 0)])  # where a deletion was cut off
    found = strays(local)
    assert {(stray.path.split("/")[1], stray.why) for stray in found} == {("gone", "of a deleted run")}
    sweep(local, found)
    assert [path.name for path in Path(local.root, "runs").iterdir()] == ["kept"]
    assert verify(local, "kept").damages == ()


def test_nothing_is_swept_where_a_log_is_damaged(memory: Store) -> None:
    run = kept_run(memory, "kept", 1)
    weights(memory, run, 2, "checkpoint")
    kept_run(memory, "other", 1)
    last = memory.objects.keys(layout.log_prefix("other"))[-1]
    data = memory.objects.read(last)
    memory.objects.delete([last])
    memory.objects.create(last, data[:-1])
    with pytest.raises(CorruptEntryError, match="of run 'other' is damaged"):
        strays(memory)


def test_deleting(store: Store) -> None:
    run = kept_run(store, "kept", 2)
    store.objects.create("runs/kept/report.html", b"x")
    kept_fork(store, run, 1, "first", 2)
    kept_fork(store, run, 2, "second", 2)
    with pytest.raises(RunHasForksError, match="run 'kept' has the forks first, second, which name its files"):
        delete_run(store, "kept")
    delete_run(store, "first")
    with pytest.raises(RunHasForksError, match="has the fork second"):
        delete_run(store, "kept")
    delete_run(store, "second")
    assert verify(store, "kept").damages == (), "what they shared is still there"
    delete_run(store, "kept")
    assert store.run_names() == []
    assert [item.key for item in store.objects.listing("runs")] == []
    assert not store.is_local or not list(Path(store.root, "runs").iterdir())
    assert store.objects.listing("shared"), "a warm start is shared with runs to come"
    with pytest.raises(RunNotFoundError, match=r"there is no run 'kept' in"):
        delete_run(store, "kept")
    kept_run(store, "kept", 1)
    assert verify(store, "kept").damages == ()


def test_a_run_that_a_lost_machine_was_writing_can_be_deleted(memory: Store, act_as: ActAs) -> None:
    act_as("elsewhere")
    lost = kept_run(memory, "kept", 1).writer()
    lost.__enter__()
    act_as("self")
    with pytest.raises(RunBusyError, match="take the run over"):
        delete_run(memory, "kept")
    assert verify(memory, "kept").damages == ()
    delete_run(memory, "kept", take_over=True)
    assert memory.objects.listing("runs") == []


def test_killed_at_every_write_of_a_deletion(act_as: ActAs) -> None:
    """The run is whole, or there is none; what is left of it is in nobody's way but its own name's."""
    store = Store.open("memory://")
    for at in count():
        kept_run(store, "kept", 0)
        act_as("dead")
        try:
            delete_run(faulty(store, at), "kept")
            crashed = False
        except Crash:
            crashed = True
        act_as("self")
        if not crashed:
            break
        if store.run_names():
            assert verify(store, "kept").damages == ()
        elif left := store.objects.listing("runs/kept"):
            assert {stray.path for stray in strays(store)} == {item.key for item in left}
            assert strays(store, after=timedelta(hours=1)) == []
            with pytest.raises(RunExistsError, match="'rondo delete kept' removes it"):
                store.create_run("kept", {})
        if store.objects.listing("runs/kept"):
            delete_run(store, "kept")
        assert store.objects.listing("runs") == []
    assert store.run_names() == []


@pytest.mark.parametrize("damage", ["first", "last"])
def test_a_damaged_run_can_be_deleted(memory: Store, damage: str) -> None:
    kept_run(memory, "kept", 1)
    other = kept_run(memory, "other", 1)
    key = memory.objects.keys(layout.log_prefix("kept"))[0 if damage == "first" else -1]
    memory.objects.delete([key])
    memory.objects.create(key, b"{}")
    delete_run(memory, "kept")
    assert memory.run_names() == ["other"]
    assert len(prune(memory, other, ()).removals) == 0


actions = st.lists(
    st.one_of(
        st.tuples(st.just("fork"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("prune"), st.integers(0, 9), st.sets(st.integers(0, 4), max_size=2)),
        st.tuples(st.just("grow"), st.integers(0, 9), st.none()),
        st.tuples(st.just("delete"), st.integers(0, 9), st.none()),
        st.tuples(st.just("sweep"), st.none(), st.none()),
    ),
    min_size=3,
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(actions)
def test_nothing_that_is_needed_ever_goes(todo: list[tuple[str, int, object]]) -> None:
    """Forks of forks, pruned, swept and deleted in any order: all that a run names and has not given up is intact."""
    store = Store.open("memory://")
    kept_run(store, "run0", 2)
    for number, (act, which, argument) in enumerate(todo, start=1):
        names = store.run_names()
        if act == "sweep" or not names:
            sweep(store, strays(store))
            continue
        _act(store, act, store.run(names[which % len(names)]), argument, f"run{number}")
        for name in store.run_names():
            found, run = verify(store, name), store.run(name)
            assert found.damages == ()
            assert found.newest_good == run.finished[-1]
            assert {0, run.finished[-1]} <= set(rounds_with_weights(run))
            for entry in run.entries():
                if entry.key is not None and entry.key.stage not in WEIGHT_STAGES:
                    assert all(store.objects.size(file.path) == file.bytes for file in entry.files)
    assert {stray.why for stray in strays(store)} <= {"dropped"}


def _act(store: Store, act: str, run: Run, argument: object, new: str) -> None:
    if act == "fork":
        assert isinstance(argument, int)
        there = rounds_with_weights(run)
        kept_fork(store, run, there[argument % len(there)], new, there[argument % len(there)] + 1)
    elif act == "prune":
        assert isinstance(argument, set)
        prune(store, run, argument)
    elif act == "grow":
        with run.writer() as writer:
            add_table(store, run, writer, run.finished[-1] + 1, "candidates")
            add_rounds(store, run, writer, run.finished[-1] + 1)
    else:
        try:
            delete_run(store, run.name)
        except RunHasForksError:
            assert any(store.run(name).header["parent"] for name in store.run_names())
