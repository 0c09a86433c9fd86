"""Logs beside a run's: what they are for readers, and that whoever looks after the store knows them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from storage.errors import InvalidNameError, RunBusyError, RunExistsError, RunNotFoundError
from storage.log.manifest import Entry, Key
from storage.log.run import Run
from storage.log.store import Store
from storage.objects import layout
from storage.queries.sql import columns_of, select
from storage.retention.prune import delete_run
from storage.retention.sweep import find_strays, sweep
from storage.tables.shards import read_table, write_table
from support.damage import write
from support.kept_run import kept_fork, kept_run, prune, verify

TABLE = pa.table({"prompt_id": ["a", "b"], "score": [0.5, 1.5]})
LATER = timedelta(days=30)


def annex_of(store: Store, run: Run, name: str = "other", rounds: tuple[int, ...] = (2, 1)) -> Run:
    """An annex with a table of these rounds, in this order."""
    annex = store.create_annex(run, name, {"what": "ever"})
    with annex.writer() as writer:
        for number in rounds:
            add(store, annex, number, writer.commit)
    return annex


def add(store: Store, annex: Run, number: int, commit: Callable[..., Entry], inputs: str = "") -> Entry:
    return commit(Key(number, "beside", 0, inputs), [write_table(store, annex.name, number, "beside", TABLE, 0)])


def test_an_annex_is_beside_the_run(store: Store) -> None:
    """On every backend; what it commits, in whatever order of rounds, changes nothing of the run."""
    run = kept_run(store, "kept", 2)
    assert run.annexes == []
    before = {item.key: item.bytes for item in store.objects.listing("runs")}
    annex = annex_of(store, run)
    after = {item.key: item.bytes for item in store.objects.listing("runs")}
    assert {key: size for key, size in after.items() if key in before} == before
    assert all(key.startswith("runs/kept/annexes/other/") for key in after.keys() - before.keys())
    assert store.run_names() == ["kept"]
    assert store.run("kept").annexes == ["other"]
    opened = store.run("kept").annex("other")
    assert (opened.header, opened.finished) == ({"what": "ever"}, [])
    assert read_table(store, opened.files(1, "beside")).equals(TABLE)
    assert [entry.round for entry in opened.entries()] == [entry.round for entry in annex.entries()]


def test_names(store: Store) -> None:
    run = kept_run(store, "kept", 1)
    annex_of(store, run)
    with pytest.raises(RunExistsError):
        store.create_annex(run, "other", {})
    for name in ("a/b", "..", "", "all"):
        with pytest.raises(InvalidNameError):
            store.create_annex(run, name, {})
    with pytest.raises(InvalidNameError):  # nobody makes one by the name of a run
        store.create_run("kept/new", {})
    with pytest.raises(InvalidNameError):
        store.run("kept/other")
    with pytest.raises(RunNotFoundError, match="run 'kept' has nothing beside it of the name 'none': there are other"):
        run.annex("none")


def test_each_has_a_writer_of_its_own(store: Store) -> None:
    run = kept_run(store, "kept", 1)
    annex = annex_of(store, run)
    with run.writer(), annex.writer() as writer:
        add(store, annex, 1, writer.commit, "more")
        with pytest.raises(RunBusyError, match="kept/other"), store.run("kept").annex("other").writer():
            pass


def test_paths() -> None:
    inside = "runs/kept/annexes/other/rounds/0001/beside-00000-x.parquet"
    assert layout.run_of(inside) == "kept"
    assert layout.log_of(inside) == "kept/other"
    assert layout.log_of("runs/kept/rounds/0001/x.parquet") == "kept"
    assert layout.log_of("shared/kind/0123456789/manifest.json") is None
    assert layout.is_file_of_run(inside)
    assert not layout.is_file_of_run("runs/kept/annexes/other/notes/mine.txt")
    assert not layout.is_file_of_run("runs/kept/annexes/mine.txt")
    assert layout.unique_directory_of(inside) is None
    weights = "runs/kept/annexes/other/rounds/0001/weights-x"
    assert layout.unique_directory_of(f"{weights}/a/model.safetensors") == weights


def test_sweep_knows_what_an_annex_names(local: Store) -> None:
    run = kept_run(local, "kept", 1)
    annex = annex_of(local, run, rounds=(1,))
    named = annex.files(1, "beside")[0]
    stray = write_table(local, annex.name, 1, "beside", TABLE, 1)  # what a killed worker leaves
    found = find_strays(local, datetime.now(UTC) + LATER)
    assert [(item.path, item.why) for item in found] == [(stray.path, "unnamed")]
    sweep(local, found)
    assert read_table(local, [named]).equals(TABLE)
    assert local.objects.size(stray.path) is None


def test_sweep_spares_what_a_writer_of_an_annex_has_just_written(local: Store) -> None:
    run = kept_run(local, "kept", 1)
    annex = annex_of(local, run, rounds=(1,))
    with annex.writer():
        write_table(local, annex.name, 1, "beside", TABLE, 1)
        write_table(local, "kept", 1, "judgments", TABLE, 7)  # of the run, which nobody writes to
        found = find_strays(local, datetime.now(UTC) + LATER)
    assert [item.path.split("/")[:3] for item in found] == [["runs", "kept", "rounds"]]


def test_prune_and_fork_leave_it_alone(local: Store) -> None:
    run = kept_run(local, "kept", 3)
    annex_of(local, run)
    prune(local, run, {3})
    kept_fork(local, local.run("kept"), 3, "fork", 3)
    assert local.run("fork").annexes == []
    assert read_table(local, local.run("kept").annex("other").files(2, "beside")).equals(TABLE)
    assert verify(local, "kept").damages == ()


def test_a_deleted_run_takes_its_annexes_along(local: Store) -> None:
    run = kept_run(local, "kept", 1)
    annex = annex_of(local, run)
    with annex.writer(), pytest.raises(RunBusyError, match="kept/other"):
        delete_run(local, "kept")
    assert local.run_names() == ["kept"]
    delete_run(local, "kept")
    assert [item.key for item in local.objects.listing("runs")] == []


def test_an_annex_of_a_run_that_is_gone_is_swept(local: Store) -> None:
    annex_of(local, kept_run(local, "kept", 1))
    local.objects.delete([layout.entry_key("kept", 0)])  # as a deletion that was killed leaves it
    sweep(local, find_strays(local, datetime.now(UTC) + LATER))
    assert [item.key for item in local.objects.listing("runs")] == []


@pytest.mark.parametrize("what", ["file", "entry"])
def test_damage_spoils_no_round(local: Store, what: str) -> None:
    annex = annex_of(local, kept_run(local, "kept", 2))
    path = annex.files(1, "beside")[0].path if what == "file" else layout.entry_key(annex.name, 2)
    whole = bytes(local.objects.read(path))
    turned = bytearray(whole)
    turned[len(turned) // 2] ^= 1
    write(local, {path: whole}, {path: bytes(turned)})
    found = verify(local, "kept")
    assert {damage.path for damage in found.damages} == {path}
    assert all("'other'" in damage.meaning and not damage.spoils for damage in found.damages)
    assert (found.good, found.newest_good) == ((0, 1, 2), 2)


def test_its_tables_in_sql(local: Store) -> None:
    run = kept_run(local, "kept", 2)
    before = columns_of(local, run)
    annex_of(local, run, "one")
    annex_of(local, run, "two", (1,))
    assert columns_of(local, run) == {**before, "beside": ["round", "prompt_id", "score"]}
    rows = select(local, run, "select round, count(*) AS n, sum(score) AS s from beside group by 1 order by 1")
    assert rows.to_pylist() == [{"round": 1, "n": 4, "s": 4.0}, {"round": 2, "n": 2, "s": 2.0}]
