"""The records of the log: what was written comes back, and nothing else is believed."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CorruptEntryError, InvalidNameError, StoreError
from storage.log import lease
from storage.log.log import Log
from storage.log.manifest import (
    Entry,
    FileRef,
    Key,
    decode_entry,
    digest_of,
    encode_entry,
    seal,
    unseal,
)
from storage.log.snapshots import Snapshot, decode_snapshot, encode_snapshot
from storage.log.store import Store
from storage.objects import layout

# The same examples each time; no deadline, since the machine may be busy.
FUZZ = settings(deadline=None, derandomize=True)

FILE = FileRef("runs/a/rounds/0001/x.parquet", 10, "0" * 64, rows=3)
ENTRY = Entry(
    5, "commit", "ab", Key(1, "candidates", 0, "x"), (FILE,), {"n": 1.5}, "1" * 64, "2026-01-01T00:00:00.000Z"
)
ROUND = replace(ENTRY, number=6, kind="round", key=Key(1, "round"), files=())
SESSION = replace(ENTRY, number=1, kind="session", key=None, files=())
SNAPSHOT = Snapshot(ROUND, 0, "2" * 64, SESSION, (ENTRY,), ())

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_round_trip() -> None:
    assert decode_entry(encode_entry(ENTRY)) == ENTRY
    assert decode_snapshot(encode_snapshot(SNAPSHOT)) == SNAPSHOT
    assert FileRef.from_json(FILE.to_json()) == FILE
    assert Key.from_json(Key(0, "a").to_json()) == Key(0, "a")


def test_a_renewal_is_a_field_of_its_own() -> None:
    renewed = replace(ENTRY, key=Key(1, "candidates", 0, "x", 12))
    assert unseal(encode_entry(renewed))["key"] == {
        "round": 1, "stage": "candidates", "shard": 0, "inputs": "x", "renewal": 12
    }  # fmt: skip
    assert decode_entry(encode_entry(renewed)) == renewed
    assert "renewal" not in unseal(encode_entry(ENTRY))["key"], "what version 0.1.0 wrote for it too"


@pytest.mark.parametrize(("inputs", "key"), [
    ("x", ("x", 0)), ("x+12", ("x", 12)), ("x+3+12", ("x", 12)), ("+7", ("", 7)), ("", ("", 0)),
])  # fmt: skip
def test_a_renewal_that_version_0_1_0_wrote_into_the_inputs(inputs: str, key: tuple[str, int]) -> None:
    value = unseal(encode_entry(ENTRY))
    value["key"]["inputs"] = inputs
    found = decode_entry(seal(value, "an entry")).key
    assert found == Key(1, "candidates", 0, *key)
    assert Key.from_json(found.to_json()) == found


@pytest.mark.parametrize("inputs", ["x+", "+", "x+y", "x++5", "x+5 ", "x+5+", "x+12345678901"])
def test_a_plus_that_is_no_renewal_is_damage(inputs: str) -> None:
    value = unseal(encode_entry(ENTRY))
    value["key"]["inputs"] = inputs
    with pytest.raises(CorruptEntryError, match="no hash of inputs"):
        decode_entry(seal(value, "an entry"))


@FUZZ
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_meta_comes_back(meta: dict[str, Any]) -> None:
    entry = replace(ENTRY, meta=meta)
    assert decode_entry(encode_entry(entry)) == entry


@FUZZ
@given(st.integers(0, len(encode_entry(ENTRY)) * 8 - 1))
def test_each_flipped_bit_is_found(bit: int) -> None:
    data = bytearray(encode_entry(ENTRY))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptEntryError):
        decode_entry(bytes(data))


@FUZZ
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused(data: bytes) -> None:
    for decode in (decode_entry, decode_snapshot, unseal):
        with pytest.raises(CorruptEntryError):
            decode(data)


def _sealed(value: object, path: list[str | int], new: object) -> bytes:
    """The sealed object with one field replaced, and a digest that fits."""
    holder: Any = value
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = new
    return seal(value, "test")  # type: ignore[arg-type]


entry_paths = st.sampled_from(
    [[name] for name in ("format", "number", "kind", "session", "key", "files", "meta", "parent", "time", "more")]
    + [["key", name] for name in ("round", "stage", "shard", "inputs", "renewal", "more")]
    + [["files", 0], *(["files", 0, name] for name in ("path", "bytes", "sha256", "rows", "name", "more"))]
)
snapshot_paths = st.sampled_from([[name] for name in ("format", "entry", "rank", "head", "session", "lines", "more")])
odd_values = json_values | st.sampled_from([-1, True, 10**30, "../x", "/etc", 1e308, [], {}, "run", "commit"])


@FUZZ
@given(entry_paths, odd_values)
def test_sealed_but_wrong_entries_raise_only_store_errors(path: list[str | int], new: object) -> None:
    data = _sealed(unseal(encode_entry(ENTRY)), path, new)
    try:
        entry = decode_entry(data)
    except CorruptEntryError:
        return
    assert decode_entry(encode_entry(entry)) == entry


@FUZZ
@given(snapshot_paths, odd_values)
def test_sealed_but_wrong_snapshots_raise_only_store_errors(path: list[str | int], new: object) -> None:
    first, *lines = encode_snapshot(SNAPSHOT).split(b"\n")
    data = b"\n".join([_sealed(unseal(first), path, new), *lines])
    try:
        snapshot = decode_snapshot(data)
    except CorruptEntryError:
        return
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


@FUZZ
@given(json_values.map(lambda value: json.dumps(value).encode()) | st.sampled_from([b"[", b"[{}]", b"[" * 100_000]))
def test_vouched_for_but_wrong_lines_raise_only_store_errors(line: bytes) -> None:
    first, *_ = encode_snapshot(SNAPSHOT).split(b"\n")
    data = b"\n".join([_sealed(unseal(first), ["lines"], [digest_of(line), digest_of(b"[]")]), line, b"[]"])
    snapshot = decode_snapshot(data)
    if line != b"[]":
        with pytest.raises(CorruptEntryError):
            list(snapshot.commits)


@FUZZ
@given(st.integers(0, len(encode_snapshot(SNAPSHOT)) * 8 - 1))
def test_each_flipped_bit_of_a_snapshot_is_found(bit: int) -> None:
    data = bytearray(encode_snapshot(SNAPSHOT))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptEntryError):
        decode_snapshot(bytes(data))


def test_a_snapshot_of_an_older_format_is_built_again() -> None:
    store = Store.open("memory://")
    run = store.create_run("a", {})
    with run.writer() as writer:
        writer.commit(Key(1, "candidates", 0, "x"), [FILE])
        writer.finish_round(1, {"n": 1})
    (key,) = store.objects.keys("runs/a/summaries")
    now = store.objects.read(key)
    store.objects.delete([key])
    store.objects.create(key, seal({"format": 1, "rank": 0}, "a snapshot"))
    assert store.run("a").entries() == run.entries()
    with store.run("a").writer():
        assert store.objects.read(key) == now


@FUZZ
@given(st.lists(st.tuples(entry_paths, odd_values), min_size=1, max_size=3), st.integers(1, 3))
def test_log_of_wrong_entries_raises_only_store_errors(changes: list[tuple[list[str | int], object]], at: int) -> None:
    """An intact log whose entry ``at`` was replaced: opened whole, or refused with an error of this package."""
    store = Store.open("memory://")
    run = store.create_run("a", {})
    with run.writer() as writer:
        writer.commit(Key(1, "candidates", 0, "x"), [FILE])
        writer.finish_round(1, {})
    key = layout.entry_key("a", at)
    value = unseal(store.objects.read(key))
    for path, new in changes:
        try:
            data = _sealed(value, path, new)
        except (KeyError, IndexError, TypeError):  # the path is not there in this kind of entry, or not any more
            return
    store.objects.delete([key, *store.objects.keys("runs/a/summaries")])
    store.objects.create(key, data)
    try:
        Log(store.objects, "a")
        reader = store.run("a")
        _ = reader.entries(), reader.rounds(), reader.state
    except StoreError:
        pass


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(b"[" * 100_000, id="deep list"),
        pytest.param(b'{"a":' * 100_000, id="deep object"),
        b"1" * 5000,
        b"\xff\xfe",
    ],
)
def test_hostile_json(depth: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        unseal(depth)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Key(-1, "a"),
        lambda: Key(10**6, "a"),
        lambda: Key(True, "a"),
        lambda: Key("1", "a"),
        lambda: Key(1, "a", -1),
        lambda: Key(1, "a", inputs="a b"),
        lambda: Key(1, "a", inputs="a+5"),
        lambda: Key(1, "a", renewal=-1),
        lambda: replace(FILE, bytes=-1),
        lambda: replace(FILE, sha256="A" * 64),
        lambda: replace(FILE, rows=-1),
    ],
)
def test_wrong_values_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidNameError):
        wrong()


def test_holder_of_a_session() -> None:
    mine = replace(SESSION, meta=lease.describe_process())
    assert lease.holder(mine) == "alive"
    reused = {"started": mine.meta["started"] - 60, "ticks": mine.meta["ticks"] - 6000}
    assert lease.holder(replace(mine, meta=mine.meta | reused)) == "dead"
    by_version_0_1_0 = {name: value for name, value in mine.meta.items() if name != "ticks"}
    assert lease.holder(replace(mine, meta=by_version_0_1_0)) == "alive"
    assert lease.holder(replace(mine, meta=by_version_0_1_0 | {"started": mine.meta["started"] - 60})) == "dead"
    clock_was_set = {"started": mine.meta["started"] - 7200}
    assert lease.holder(replace(mine, meta=mine.meta | clock_was_set)) == "alive", "it still runs, and may write"
    assert lease.holder(replace(mine, meta=mine.meta | {"host": "elsewhere"})) == "unknown"
    assert "(this very process)" in lease.describe_holder(mine)
    for meta in (
        {},
        mine.meta | {"pid": "x"},
        mine.meta | {"pid": -1},
        mine.meta | {"pid": 2**70},
        mine.meta | {"started": None},
    ):
        assert lease.holder(replace(mine, meta=meta)) in ("unknown", "dead")


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="a system without PID namespaces")
def test_a_container_that_has_the_name_of_its_host_counts_its_processes_by_itself() -> None:
    mine = replace(SESSION, meta=lease.describe_process())
    boxed = replace(mine, meta=mine.meta | {"pid_namespace": "pid:[1]"})
    assert lease.holder(boxed) == "unknown", "its process id is another's here"
    said = lease.describe_holder(boxed)
    assert f"process {os.getpid()} on host" in said
    assert "in another PID namespace" in said
    assert "this very process" not in said
    gone = replace(mine, meta=boxed.meta | {"boot": "an earlier one", "started": mine.meta["started"] - 60})
    assert lease.holder(gone) == "dead", "no process outlives the system"
