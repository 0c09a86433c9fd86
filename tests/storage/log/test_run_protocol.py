"""What runs and writers promise, the same on every backend."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from store_faults import contents, fail, faulty, small_run

from storage.errors import (
    BackendError,
    CorruptEntryError,
    InvalidEntryError,
    InvalidNameError,
    RoundFinishedError,
    RunBusyError,
    RunExistsError,
    RunNotFoundError,
    UnsupportedStoreError,
)
from storage.log.manifest import Entry, Key, digest_of, encode_entry
from storage.log.store import Store
from storage.objects import layout
from storage.objects.objects import Objects
from storage.tables.shards import write_table

ActAs = Callable[[str], None]


def test_reader_sees_what_was_committed(store: Store, tmp_path: Path) -> None:
    small_run(store)
    seen = contents(store, tmp_path / "cache")
    assert seen[:2] == [{"recipe": "small"}, "stopped"]
    assert [row[0] for row in seen[2:]] == [1, 2]
    assert seen[3][1] == {"loss": 0.5}
    assert seen[3][2] == [{"prompt_id": "p0", "score": 1.0}, {"prompt_id": "p1", "score": 1.0}]
    assert seen[3][3] == {"model.safetensors": b"\2" * 10, "config.json": b"{}"}


def test_reader_refreshes(store: Store) -> None:
    run = store.create_run("a", {})
    reader = store.run("a")
    with run.writer() as writer:
        writer.commit(Key(1, "candidates"), [], {"n": 1})
        assert reader.entries() == []
        reader.refresh()
        assert [entry.meta for entry in reader.entries()] == [{"n": 1}]
        writer.finish_round(1, {})
        reader.refresh()
        assert [entry.round for entry in reader.rounds()] == [1]
        assert reader.find(Key(1, "candidates")) == run.find(Key(1, "candidates"))


def test_uncommitted_file_is_invisible(store: Store) -> None:
    run = store.create_run("a", {})
    write_table(store, "a", 1, "candidates", pa.table({"x": [1]}))
    assert store.run("a").files(1, "candidates") == run.files(1, "candidates") == []


def test_same_key_commits_once(store: Store) -> None:
    run = store.create_run("a", {})
    with run.writer() as writer:
        first = writer.commit(Key(1, "candidates", 0, "x"), [], {"n": 1})
        assert writer.commit(Key(1, "candidates", 0, "x"), [], {"n": 2}) == first
        writer.commit(Key(1, "candidates", 0, "y"), [], {"n": 3})
        done = writer.finish_round(1, {"n": 4})
        assert writer.finish_round(1, {"n": 5}) == done
        assert writer.commit(Key(1, "candidates", 0, "x"), []) == first
        with pytest.raises(RoundFinishedError, match="round 1"):
            writer.commit(Key(1, "candidates", 1, "x"), [])
        writer.finish_round(3, {})
        with pytest.raises(RoundFinishedError, match="round 2"):
            writer.finish_round(2, {})
    assert [entry.meta for entry in store.run("a").entries()] == [{"n": 1}, {"n": 3}]


def test_shards_in_order_and_latest_inputs_win(store: Store) -> None:
    run = store.create_run("a", {})
    with run.writer() as writer:
        written = {}
        for shard, inputs in ((2, "x"), (0, "x"), (1, "x"), (1, "y")):
            ref = write_table(store, "a", 1, "candidates", pa.table({"x": [shard]}), shard)
            written[shard] = ref
            writer.commit(Key(1, "candidates", shard, inputs), [ref])
            writer.commit(Key(1, "other", shard, inputs), [])
    run = store.run("a")
    assert run.files(1, "candidates") == [written[0], written[1], written[2]]
    assert [(entry.key.stage, entry.key.shard, entry.key.inputs) for entry in run.entries(1)] == [
        ("candidates", 0, "x"), ("candidates", 1, "x"), ("candidates", 1, "y"), ("candidates", 2, "x"),
        ("other", 0, "x"), ("other", 1, "x"), ("other", 1, "y"), ("other", 2, "x"),
    ]  # fmt: skip


def test_inputs_that_come_back_are_the_newest_again(store: Store) -> None:
    """Of two shards, the first with inputs x, y, x again and again, also for a reader that begins at a snapshot."""
    run = store.create_run("a", {})
    keys = {inputs: Key(2, "candidates", 0, inputs) for inputs in ("x", "y")}
    with run.writer() as writer:
        other = write_table(store, "a", 2, "candidates", pa.table({"x": ["other"]}), 1)
        writer.commit(Key(2, "candidates", 1), [other])
        written = {}
        for inputs, key in keys.items():
            written[inputs] = write_table(store, "a", 2, "candidates", pa.table({"x": [inputs]}), 0)
            assert writer.renew(writer.commit(key, [written[inputs]])).key == key
        writer.finish_round(1, {})
    run = store.run("a")
    with run.writer() as writer:
        for inputs in ("x", "x", "y", "x"):
            found = run.find(keys[inputs])
            assert found is not None
            writer.renew(found)
            for reader in (run, store.run("a")):
                assert reader.files(2, "candidates") == [written[inputs], other]
        writer.finish_round(2, {})
        assert writer.renew(run.entries(2)[0]) == run.entries(2)[0]
    assert len(run.entries(2, "candidates")) == 3 + 3
    assert [entry.key for entry in run.work(2, "candidates")] == [*keys.values(), Key(2, "candidates", 1)]


def test_a_whole_stage_is_the_newest_again_after_its_shards(store: Store) -> None:
    """As people's preferences, in the place of those of the shards that they were made from."""
    run = store.create_run("a", {})
    tables = {name: write_table(store, "a", 1, "preferences", pa.table({"x": [name]})) for name in ("x", "y", "whole")}
    keys = {"x": Key(1, "preferences", 0, "x"), "y": Key(1, "preferences", 0, "y"), "whole": Key(1, "preferences")}
    with run.writer() as writer:
        first = {name: writer.commit(keys[name], [tables[name]]) for name in ("x", "whole", "y")}
        assert run.files(1, "preferences") == [tables["y"]]
        assert writer.renew(first["x"]) != first["x"]
        writer.renew(first["whole"])
        for _again in range(2):
            assert writer.renew(first["x"]).files == writer.renew(first["x"]).files == first["x"].files
            assert writer.renew(first["whole"]).files == first["whole"].files
        assert len(run.entries(1)) == 5
    assert store.run("a").files(1, "preferences") == [tables["whole"]]


def test_overlapping_rounds_keep_their_entries(store: Store) -> None:
    """Entries of a later round, and of a round that never ends, that lie before the end of an earlier round."""
    run = store.create_run("a", {})
    with run.writer() as writer:
        writer.commit(Key(0, "prompts"), [], {"n": 0})
        writer.commit(Key(1, "candidates"), [], {"n": 1})
        writer.commit(Key(2, "candidates"), [], {"n": 2})
        writer.finish_round(1, {})
        writer.commit(Key(2, "judgments"), [], {"n": 3})
        writer.finish_round(2, {})
    for reader in (run, store.run("a")):
        assert [[entry.meta["n"] for entry in reader.entries(number)] for number in (0, 1, 2)] == [[0], [1], [2, 3]]
        assert sorted(entry.meta["n"] for entry in reader.entries()) == [0, 1, 2, 3]
        assert reader.last_round is not None
        assert reader.last_round.round == 2


def test_run_exists_and_near_misses(store: Store) -> None:
    store.create_run("sentiment-1", {})
    with pytest.raises(RunExistsError, match="sentiment-1"):
        store.create_run("sentiment-1", {})
    with pytest.raises(RunNotFoundError, match="did you mean 'sentiment-1'"):
        store.run("sentimet-1")
    assert store.run_names() == ["sentiment-1"]


def test_second_writer_is_refused_while_the_first_lives(store: Store) -> None:
    run = store.create_run("a", {})
    with run.writer() as first:
        other = store.run("a")
        assert other.state == "running"
        with (
            pytest.raises(RunBusyError, match=r"run 'a' is written by process \d+ \(this very process\)"),
            other.writer(take_over=True),
        ):
            pass
        first.commit(Key(1, "candidates"), [])
    other.refresh()
    assert other.state == "stopped"
    with other.writer() as second:
        second.commit(Key(1, "judgments"), [])


def test_dead_writer_is_succeeded(store: Store, act_as: ActAs) -> None:
    act_as("dead")
    abandoned = store.create_run("a", {}).writer()
    abandoned.__enter__().commit(Key(1, "candidates"), [])
    act_as("self")
    run = store.run("a")
    assert run.state == "stopped"
    with run.writer() as writer:
        writer.commit(Key(1, "judgments"), [])
    assert len(store.run("a").entries()) == 2


def test_what_was_closed_on_another_machine_is_free(store: Store, act_as: ActAs) -> None:
    """Nobody here can tell whether that machine's process lives: its closing entry says that it is done."""
    act_as("elsewhere")
    run = store.create_run("a", {})
    with run.writer() as writer:
        writer.commit(Key(1, "candidates"), [])
        assert store.run("a").state == "running"
    act_as("self")
    assert (run.state, store.run("a").state) == ("stopped", "stopped")
    with run.writer(), pytest.raises(RunBusyError), store.run("a").writer():
        pass
    with store.run("a").writer() as writer:
        writer.commit(Key(1, "judgments"), [])


def test_revived_writer_is_fenced(store: Store, act_as: ActAs) -> None:
    act_as("elsewhere")
    run = store.create_run("a", {})
    paused = run.writer()
    writer = paused.__enter__()
    writer.commit(Key(1, "candidates", 0), [])
    act_as("self")
    other = store.run("a")
    with pytest.raises(RunBusyError, match=r"elsewhere\.example.*--take-over"), other.writer():
        pass
    with other.writer(take_over=True) as successor:
        successor.commit(Key(1, "candidates", 1), [])
        before = store.objects.keys("runs/a/log")
        for _ in range(2):  # it stays stopped
            with pytest.raises(RunBusyError, match="taken over"):
                writer.commit(Key(1, "candidates", 2), [])
        with pytest.raises(RunBusyError, match="taken over"):
            writer.finish_round(1, {})
        paused.__exit__(None, None, None)
        assert store.objects.keys("runs/a/log") == before
        successor.commit(Key(1, "candidates", 3), [])
    assert [entry.key.shard for entry in store.run("a").entries()] == [0, 1, 3]
    assert store.run("a").state == "stopped"


def test_fenced_writer_with_nothing_left_to_do_ends_quietly(store: Store, act_as: ActAs) -> None:
    act_as("elsewhere")
    with store.create_run("a", {}).writer():
        act_as("self")
        successor = store.run("a").writer(take_over=True)
        successor.__enter__()
    assert store.run("a").state == "running"
    successor.__exit__(None, None, None)
    assert store.run("a").state == "stopped"


def test_closing_does_not_mask(store: Store) -> None:
    run = store.create_run("a", {})
    with pytest.raises(KeyError, match="mine"), run.writer():
        raise KeyError("mine")
    assert store.run("a").state == "stopped"
    doomed = faulty(store, 2, "before", fail)  # session, its probe, close
    with pytest.raises(KeyError, match="mine") as caught, doomed.run("a").writer():
        raise KeyError("mine")
    assert "could not be closed" in caught.value.__notes__[0]


def test_closed_writer_writes_no_more(store: Store) -> None:
    run = store.create_run("a", {})
    with run.writer() as writer:
        pass
    with pytest.raises(RunBusyError, match="closed"):
        writer.commit(Key(1, "candidates"), [])


@pytest.mark.parametrize("write", range(10))
def test_lost_reply_changes_nothing(store: Store, tmp_path: Path, write: int) -> None:
    """The write took place, the reply was lost: an entry counts as written, other writes fail or can be done again."""
    lossy = faulty(store, write, "after", fail)
    for _ in range(2):
        try:
            small_run(lossy)
            break
        except BackendError:
            continue
    assert lossy.objects.writes > write
    reference = Store.open("memory://")
    small_run(reference)
    assert contents(store, tmp_path / "a") == contents(reference, tmp_path / "b")


def test_entry_whose_reply_was_lost_is_committed(store: Store) -> None:
    run = faulty(store, 4, "after", fail).create_run("a", {})  # run, probe, session, probe, commit
    with run.writer() as writer:
        entry = writer.commit(Key(1, "candidates"), [])
    assert store.run("a").entries() == [entry]


def test_failed_commit_can_be_repeated(store: Store) -> None:
    run = faulty(store, 4, "before", fail).create_run("a", {})  # run, probe, session, probe, commit
    with run.writer() as writer:
        with pytest.raises(BackendError):
            writer.commit(Key(1, "candidates"), [])
        entry = writer.commit(Key(1, "candidates"), [])
    assert store.run("a").entries() == [entry]


def test_late_arrival_of_a_failed_commit_is_adopted(store: Store) -> None:
    """The first attempt is reported as failed, yet lands before the second."""
    run = store.create_run("a", {})
    with run.writer() as writer:
        late = writer._draft("commit", Key(1, "candidates"), (), {"n": 1})
        store.objects.create(layout.entry_key("a", late.number), encode_entry(late))
        assert writer.commit(Key(1, "candidates"), [], {"n": 2}) == late
        writer.commit(Key(1, "judgments"), [])
    assert [entry.meta for entry in store.run("a").entries()] == [{"n": 1}, {}]


def test_commit_returns_what_readers_see(store: Store) -> None:
    run = store.create_run("a", {"x": (1, 2)})
    assert run.header == {"x": [1, 2]}
    with run.writer() as writer:
        entry = writer.commit(Key(1, "candidates"), [], {"x": (1.5, None), "y": {2: 3}, "z": "\ud800 ä"})
    assert entry.meta == {"x": [1.5, None], "y": {"2": 3}, "z": "\ud800 ä"}
    assert store.run("a").entries() == [entry]


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": {1, 2}}, {1: 2, "1": 3}, {"x": b"bytes"}])
def test_meta_that_is_no_json_is_refused(store: Store, meta: dict) -> None:
    run = store.create_run("a", {})
    with run.writer() as writer:
        with pytest.raises(InvalidEntryError, match="cannot be written as JSON"):
            writer.commit(Key(1, "candidates"), [], meta)
        writer.commit(Key(1, "candidates"), [])
    with pytest.raises(InvalidEntryError):
        store.create_run("b", meta)


class Overwriting(Objects):
    """A backend that ignores the condition of a put, as some S3 look-alikes do."""

    def create(self, key: str, data: bytes) -> bool:
        self._store.put(key, data)
        return True


def test_backend_without_put_if_absent_is_refused() -> None:
    backend = Store.open("memory://").objects._store
    store = Store("memory://", Overwriting("memory://", lambda _seconds: backend))
    with pytest.raises(UnsupportedStoreError, match="overwrites"):
        store.create_run("a", {})


@pytest.mark.parametrize("root", ["http://127.0.0.1/x", "ftp://x/y", "s4://bucket", "az://container"])
def test_unsupported_roots(root: str) -> None:
    with pytest.raises(UnsupportedStoreError):
        Store.open(root)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b/c",
        "/etc",
        "a\\b",
        "-x",
        ".x",
        "_x",
        "a\n",
        "a\0",
        "a b",
        "ä",
        "x" * 101,
        "runs",
        "Latest",
        "a%2F..",
        "~",
    ],
)
def test_names_that_are_refused(local: Store, name: str) -> None:
    with pytest.raises(InvalidNameError):
        local.create_run(name, {})
    with pytest.raises(InvalidNameError):
        local.run(name)
    with pytest.raises(InvalidNameError):
        write_table(local, name, 1, "candidates", pa.table({"x": [1]}))
    assert local.run_names() == []


def test_what_lies_beside_a_run_is_no_run(local: Store) -> None:
    """Its tables are written under a name of two parts; no run has one."""
    with pytest.raises(InvalidNameError):
        local.create_run("a/b", {})
    with pytest.raises(InvalidNameError):
        local.run("a/b")


@pytest.mark.parametrize("name", ["a", "0", "A.b-c_d", "x" * 100, "a..b"])
def test_names_that_are_taken(local: Store, name: str) -> None:
    local.create_run(name, {})
    assert local.run_names() == [name]


@pytest.mark.parametrize("stage", ["", "..", "a/b", "A", "a.b", "a b", "x" * 65])
def test_stages_that_are_refused(local: Store, stage: str) -> None:
    with pytest.raises(InvalidNameError):
        Key(1, stage)
    with pytest.raises(InvalidNameError):
        write_table(local, "a", 1, stage, pa.table({"x": [1]}))


def test_a_file_that_is_no_entry_is_passed_over(store: Store) -> None:
    run = store.create_run("a", {})
    for name in ("notes.txt", "0000000001.json.orig", "1.json"):
        store.objects.create(f"{layout.log_prefix('a')}/{name}", b"not ours")
    with run.writer() as writer:
        writer.commit(Key(1, "candidates"), [])
    assert len(store.run("a").entries()) == 1


def test_gap_in_the_log_is_damage(store: Store) -> None:
    run = store.create_run("a", {})
    with run.writer() as writer:
        entry = writer.commit(Key(1, "candidates"), [])
    store.objects.delete([layout.entry_key("a", entry.number)])
    with pytest.raises(CorruptEntryError, match="gap"):
        store.run("a")


def test_replaced_entry_is_damage(store: Store) -> None:
    """An entry that is intact in itself, but not the one that the next entry follows from."""
    run = store.create_run("a", {})
    with run.writer() as writer:
        entry = writer.commit(Key(1, "candidates"), [], {"n": 1})
        writer.commit(Key(1, "judgments"), [])
    key = layout.entry_key("a", entry.number)
    store.objects.delete([key])
    store.objects.create(key, encode_entry(replace(entry, meta={"n": 2})))
    with pytest.raises(CorruptEntryError, match=f"entry {entry.number + 1} does not follow"):
        store.run("a")


def test_a_round_that_nobody_has_finished_is_damage(store: Store) -> None:
    """Its entry is intact and follows from the one before, but no writer had the run open."""
    run = store.create_run("a", {})
    digest = digest_of(store.objects.read(layout.entry_key("a", 0)))
    entry = Entry(1, "round", "s", Key(0, "round"), (), {}, digest, run.created)
    store.objects.create(layout.entry_key("a", 1), encode_entry(entry))
    with pytest.raises(CorruptEntryError, match="entry 1 finishes a round outside any session"):
        store.run("a")


def test_damaged_snapshots_are_built_again(store: Store, tmp_path: Path) -> None:
    small_run(store)
    seen = contents(store, tmp_path / "a")
    snapshots = store.objects.keys("runs/small/summaries")
    assert len(snapshots) == 2
    intact = [store.objects.read(key) for key in snapshots]
    for damaged in ([0], [1], [0, 1]):
        for index in damaged:
            store.objects.delete([snapshots[index]])
            store.objects.create(snapshots[index], intact[index][:-7] + b"x" + intact[index][-6:])
        assert contents(store, tmp_path / "a") == seen
        for index in damaged:
            store.objects.delete([snapshots[index]])
        assert contents(store, tmp_path / "a") == seen
        with store.run("small").writer():
            pass
        assert [store.objects.read(key) for key in snapshots] == intact


def test_a_run_stays_paused_until_a_writer_ends_the_pause(store: Store) -> None:
    """Through sessions that do something else, and through one that dies in between."""
    run = store.create_run("a", {})
    assert run.pause is None
    with run.writer() as writer:
        writer.pause({"by": "ann"})
        assert run.pause is None, "who writes has not left it yet"
    assert run.pause == store.run("a").pause == {"by": "ann"}
    with run.writer() as other:
        other.commit(Key(1, "candidates"), [])
        other.finish_round(1, {})
    assert store.run("a").pause == {"by": "ann"}
    with run.writer() as dead:
        dead.leave()
    assert store.run("a").pause == {"by": "ann"}
    with run.writer(ends_pause=True):
        assert store.run("a").pause is None
    assert store.run("a").pause is None
