"""Tables and directories: written whole and durably, read back only as they were committed."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from store_faults import fail, faulty

from storage.errors import (
    BackendError,
    CorruptEntryError,
    DamagedFileError,
    InvalidEntryError,
    InvalidNameError,
    NotCommittedError,
    QueryError,
)
from storage.log.manifest import FileRef, Key
from storage.log.store import Store
from storage.tables import checkpoints
from storage.tables.checkpoints import (
    directory_digest,
    find_shared,
    has_shared,
    local_directory,
    stage_directory,
    stage_shared,
    weights_digest,
)
from storage.tables.datasets import open_dataset
from storage.tables.shards import read_table, write_table

SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False, metadata={"doc": "the prompt"}),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False, metadata={"unit": "nats"}),
        pa.field("components", pa.map_(pa.string(), pa.float64())),
    ],
    metadata={"rondo.record": "candidates"},
)


def _table(first: int, rows: int) -> pa.Table:
    ids = range(first, first + rows)
    values = [[f"p{i}" for i in ids], [[float(i)] * (i % 3) for i in ids], [[("length", float(i))] for i in ids]]
    return pa.table([pa.array(value, field.type) for value, field in zip(values, SCHEMA, strict=True)], schema=SCHEMA)


def _overwrite(store: Store, path: str, data: bytes) -> None:
    store.objects.delete([path])
    store.objects.create(path, data)


def test_round_trip_keeps_metadata(store: Store) -> None:
    files = [write_table(store, "a", 1, "candidates", _table(shard * 10, 10), shard) for shard in (0, 1)]
    back = read_table(store, files)
    assert back.equals(_table(0, 20))
    assert back.schema.equals(SCHEMA)
    assert back.schema.metadata == SCHEMA.metadata
    # Parquet adds its field ids; it also calls the items of a list "element".
    assert all(
        set(field.metadata.items()) <= set(back.schema.field(field.name).metadata.items())
        for field in SCHEMA
        if field.metadata
    )
    assert [file.rows for file in files] == [10, 10]
    assert read_table(store, files, ["logprobs"]).column_names == ["logprobs"]
    assert read_table(store, files, verify=False).equals(_table(0, 20))
    with pytest.raises(QueryError, match="nope"):
        read_table(store, files, ["nope"])
    with pytest.raises(NotCommittedError):
        read_table(store, [])


def test_batches_are_written_as_they_come(store: Store) -> None:
    batches = (batch for first in (0, 10) for batch in _table(first, 10).to_batches())
    file = write_table(store, "a", 1, "candidates", pa.RecordBatchReader.from_batches(SCHEMA, batches))
    assert read_table(store, [file]).equals(_table(0, 20))


def test_empty_table(store: Store) -> None:
    file = write_table(store, "a", 1, "preferences", SCHEMA.empty_table())
    assert (file.rows, read_table(store, [file]).schema) == (0, SCHEMA)


def test_file_names_say_what_they_are(store: Store) -> None:
    all_, one = (write_table(store, "a", 3, "candidates", _table(0, 1), shard) for shard in (None, 12))
    assert all_.path.startswith("runs/a/rounds/0003/candidates-all-")
    assert one.path.startswith("runs/a/rounds/0003/candidates-00012-")


def test_dataset_is_lazy_and_has_rounds(store: Store) -> None:
    files = [write_table(store, "a", number, "candidates", _table(number * 10, 10)) for number in (1, 2)]
    rounds = {file.path: number for number, file in enumerate(files, 1)}
    dataset = open_dataset(store, files, rounds=rounds)
    import pyarrow.dataset as ds

    chosen = dataset.to_table(columns=["round", "prompt_id"], filter=ds.field("round") == 2)
    assert chosen["round"].to_pylist() == [2] * 10
    assert chosen["prompt_id"].to_pylist() == [f"p{i}" for i in range(20, 30)]
    assert open_dataset(store, files).to_table().equals(pa.concat_tables([_table(10, 10), _table(20, 10)]))


def test_one_column_reads_little_more_than_its_bytes() -> None:
    """Counted on ranged reads, as they go to a bucket."""
    store = Store.open("memory://")
    rows = 20_000
    random = np.random.default_rng(0)
    table = pa.table({"small": np.arange(rows, dtype=np.int8), "large": random.random((rows, 16)).tolist()})
    file = write_table(store, "a", 1, "candidates", table)
    read = 0

    def counting(reader):
        plain = reader.read

        def count(size: int = -1) -> bytes:
            nonlocal read
            data = plain(size)
            read += len(data)
            return data

        reader.read = count
        return reader

    opened = store.objects.open
    store.objects.open = lambda key: counting(opened(key))
    assert open_dataset(store, [file]).to_table(columns=["small"]).num_rows == rows
    # A column of 20 kB in a file of 2.5 MB; Parquet's footer is read in steps of 64 kB.
    assert read < 200_000 < file.bytes / 10


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped first bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "flipped bit in the middle": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :]
    ),
    "truncated": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "extended": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_table_is_refused(store: Store, damage: str) -> None:
    good, bad = (write_table(store, "a", 1, "candidates", _table(0, 10), shard) for shard in (0, 1))
    _overwrite(store, bad.path, DAMAGE[damage](store.objects.read(bad.path)))
    with pytest.raises(DamagedFileError, match=bad.path):
        read_table(store, [good, bad])
    if not damage.startswith("flipped"):
        with pytest.raises(DamagedFileError, match=bad.path):
            open_dataset(store, [good, bad])
    assert read_table(store, [good]).num_rows == 10


def test_swapped_and_deleted_tables_are_refused(store: Store) -> None:
    one, two = (write_table(store, "a", 1, "candidates", _table(first, 10)) for first in (0, 10))
    _overwrite(store, one.path, store.objects.read(two.path))
    with pytest.raises(DamagedFileError, match=one.path):
        read_table(store, [one, two])
    store.objects.delete([two.path])
    for read in (read_table, open_dataset):
        with pytest.raises(DamagedFileError, match=f"{two.path} is missing"):
            read(store, [two])


def test_wrong_row_count_is_refused(store: Store) -> None:
    file = write_table(store, "a", 1, "candidates", _table(0, 10))
    with pytest.raises(DamagedFileError, match="10 rows, and was committed with 9"):
        read_table(store, [replace(file, rows=9)])


def test_failing_write_leaves_nothing(store: Store) -> None:
    def batches():
        yield from _table(0, 5).to_batches()
        raise RuntimeError("the sampler stopped")

    with pytest.raises(RuntimeError, match="the sampler stopped"):
        write_table(store, "a", 1, "candidates", pa.RecordBatchReader.from_batches(SCHEMA, batches()))
    with pytest.raises(BackendError, match="as the test wants it"):
        write_table(faulty(store, 0, "before", fail), "a", 1, "candidates", _table(0, 5))
    assert store.objects.keys("runs") == []


def _checkpoint(store: Store, run: str = "a", text: bytes = b"weights") -> tuple[FileRef, ...]:
    with stage_directory(store, run, 1, "checkpoint") as staged:
        (staged.path / "model.safetensors").write_bytes(text)
        (staged.path / "tokenizer").mkdir()
        (staged.path / "tokenizer" / "vocab.json").write_bytes(b"{}")
    return staged.files


def test_directory_round_trip(store: Store, tmp_path: Path) -> None:
    files = _checkpoint(store)
    assert [file.name for file in files] == ["model.safetensors", "tokenizer/vocab.json"]
    directory = local_directory(store, files, tmp_path / "cache")
    assert (directory / "tokenizer" / "vocab.json").read_bytes() == b"{}"
    assert local_directory(store, files, tmp_path / "cache") == directory
    assert directory.is_relative_to(store.local_root or tmp_path / "cache")
    other = _checkpoint(store, run="b")
    assert directory_digest(other) == directory_digest(files) == directory_digest(files[::-1])
    assert weights_digest(files) == directory_digest(files[:1]) != directory_digest(files)
    assert weights_digest(_checkpoint(store, text=b"other")) != weights_digest(files)
    with pytest.raises(InvalidEntryError, match="no weights"):
        weights_digest(files[1:])
    with pytest.raises(InvalidEntryError, match="2 directories"):
        local_directory(store, [files[0], other[1]], tmp_path / "cache")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_directory_is_refused(store: Store, tmp_path: Path, damage: str) -> None:
    files = _checkpoint(store)
    _overwrite(store, files[0].path, DAMAGE[damage](b"weights"))
    with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
        local_directory(store, files, tmp_path / "cache")
    _overwrite(store, files[0].path, b"weights")
    directory = local_directory(store, files, tmp_path / "cache")
    (directory / "model.safetensors").write_bytes(DAMAGE[damage](b"weights"))
    with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
        local_directory(store, files, tmp_path / "cache")


def test_a_file_is_hashed_once_until_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a file changes in place, with its old time of modification: its time of change tells."""
    store, hashed = Store.open(tmp_path / "root"), list[str]()
    monkeypatch.setattr(checkpoints, "_SETTLED_NS", -1)
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: (hashed.append(file.name), digest(file, kind))[1])
    files = _checkpoint(store)
    written = len(hashed)
    for _ in range(2):
        directory = local_directory(store, files, tmp_path / "cache")
    assert len(hashed) == written == 2
    weights = directory / "model.safetensors"
    times = weights.stat()
    time.sleep(0.02)  # longer than a tick of the file system's clock
    with weights.open("r+b") as file:
        file.write(b"WEI")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedFileError, match="is damaged"):
        local_directory(store, files, tmp_path / "cache")
    assert hashed[written:] == [str(weights)]


def test_a_file_that_was_new_when_reading_began_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the hashing took: a write within the tick of the first one would not show in the file's times."""
    hashed = []
    digest = hashlib.file_digest

    def slow(file: Any, kind: str) -> Any:
        found = digest(file, kind)
        hashed.append(file.name)
        time.sleep(2 * checkpoints._SETTLED_NS / 1e9)
        return found

    monkeypatch.setattr(hashlib, "file_digest", slow)
    store = Store.open(tmp_path)
    store.create_run("r", {})
    with stage_directory(store, "r", 1, "checkpoint") as staged:
        (staged.path / "weights").write_bytes(b"weights")
    assert len(hashed) == 1
    for reads in (2, 2):  # the second reading begins when the file has settled, and is remembered
        local_directory(store, staged.files, tmp_path / "cache")
        assert len(hashed) == reads


def test_what_was_hashed_when_it_was_written_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large file, which is worth the wait; and one that changes afterwards is still found out."""
    store = Store.open(tmp_path / "root")
    store.create_run("r", {})
    monkeypatch.setattr(checkpoints, "_LARGE", 1)
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: (hashed.append(file.name), digest(file, kind))[1])
    with stage_directory(store, "r", 1, "checkpoint") as staged:
        (staged.path / "weights").write_bytes(b"weights")
    for _ in range(2):
        directory = local_directory(store, staged.files, tmp_path / "cache")
    assert len(hashed) == 1
    time.sleep(0.02)  # longer than a tick of the file system's clock
    (directory / "weights").write_bytes(b"WEIGHTS")
    with pytest.raises(DamagedFileError, match="is damaged"):
        local_directory(store, staged.files, tmp_path / "cache")


def test_added_and_deleted_files_are_refused(store: Store, tmp_path: Path) -> None:
    files = _checkpoint(store)
    directory = local_directory(store, files, tmp_path / "cache")
    (directory / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(DamagedFileError, match=r"pytorch_model.bin was not committed"):
        local_directory(store, files, tmp_path / "cache")
    (directory / "pytorch_model.bin").unlink()
    (directory / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(DamagedFileError, match=r"vocab\.json is missing"):
        local_directory(store, files, tmp_path / "cache")
    (directory / "tokenizer" / "vocab.json").symlink_to("/etc/hostname")
    with pytest.raises(DamagedFileError, match="no plain file"):
        local_directory(store, files, tmp_path / "cache")


def test_deleted_object_of_a_directory_is_refused(store: Store, tmp_path: Path) -> None:
    files = _checkpoint(store)
    store.objects.delete([files[1].path])
    with pytest.raises(DamagedFileError, match=r"vocab\.json"):
        local_directory(store, files, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_failing_stage_leaves_nothing(store: Store) -> None:
    for action, error in (
        (lambda path: 1 / 0, ZeroDivisionError),
        (lambda path: None, InvalidEntryError),
        (lambda path: (path / "link").symlink_to("/etc/hostname"), InvalidEntryError),
    ):
        with pytest.raises(error), stage_directory(store, "a", 1, "checkpoint") as staged:
            action(staged.path)
        assert not staged.path.exists()
        assert staged.files == ()
    assert store.objects.keys("runs") == []


def test_shared_directory(store: Store, tmp_path: Path) -> None:
    digest = "ab" * 32
    assert find_shared(store, "warm_starts", digest) is None
    assert not has_shared(store, "warm_starts")
    with stage_shared(store, "warm_starts", digest) as slow:
        (slow.path / "model.safetensors").write_bytes(b"slow")
        with stage_shared(store, "warm_starts", digest) as fast:
            (fast.path / "model.safetensors").write_bytes(b"fast")
        assert find_shared(store, "warm_starts", digest) == fast.files
    assert slow.files == fast.files == find_shared(store, "warm_starts", digest)
    assert has_shared(store, "warm_starts")
    assert not has_shared(store, "dequantised")
    assert (local_directory(store, slow.files, tmp_path / "cache") / "model.safetensors").read_bytes() == b"fast"
    run = store.create_run("a", {})
    with run.writer() as writer:
        writer.commit(Key(0, "checkpoint"), slow.files)
    assert store.run("a").files(0, "checkpoint") == list(fast.files)
    (manifest,) = [key for key in store.objects.keys("shared") if key.endswith("manifest.json")]
    data = store.objects.read(manifest)
    _overwrite(store, manifest, data.replace(b"warm_starts", b"warm_stirts", 1))
    with pytest.raises(CorruptEntryError, match=r"manifest\.json is damaged"):
        find_shared(store, "warm_starts", digest)


@pytest.mark.parametrize(
    ("kind", "digest"), [("../runs", "ab" * 32), ("warm", "../../x"), ("warm", "AB" * 32), ("warm", "")]
)
def test_shared_names_that_are_refused(store: Store, kind: str, digest: str) -> None:
    with pytest.raises(InvalidNameError):
        find_shared(store, kind, digest)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "runs/../../etc/passwd",
        "runs//a",
        "runs/a/.",
        "other/a",
        "runs",
        "runs/a\\b",
        "runs/a\0b",
        "runs/",
        "",
    ],
)
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(InvalidNameError):
        FileRef(path, 1, "0" * 64)
    with pytest.raises(CorruptEntryError):
        FileRef.from_json({"path": path, "bytes": 1, "sha256": "0" * 64})
    with pytest.raises(InvalidNameError):
        FileRef("runs/a/x", 1, "0" * 64, name="../x")


def test_links_that_lead_out_are_refused(local: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    file = write_table(local, "a", 1, "candidates", _table(0, 1))
    real = local.local_root / "runs" / "a"
    shutil.move(real, outside / "a")
    real.symlink_to(outside / "a")
    for attempt in (
        lambda: local.create_run("a", {}),
        lambda: read_table(local, [file]),
        lambda: write_table(local, "a", 1, "candidates", _table(0, 1)),
        lambda: _checkpoint(local),
        lambda: open_dataset(local, [file]),
    ):
        with pytest.raises(InvalidNameError, match="leads out of"):
            attempt()
    assert local.run_names() == []
    assert [path.name for path in outside.rglob("*") if path.is_file()] == [Path(file.path).name]


def test_files_are_on_disk_before_their_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of fsyncs: each file, its directory, and only then the name of the entry, and the log's directory."""
    store = Store.open(tmp_path / "root")
    run = store.create_run("a", {})
    events: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def see_fsync(descriptor: int) -> None:
        events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def see_link(source: Path, target: Path) -> None:
        events.append(("link", str(target)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "link", see_link)
    with run.writer() as writer:
        events.clear()
        files: Sequence[FileRef] = [write_table(store, "a", 1, "candidates", _table(0, 1)), *_checkpoint(store)]
        entry = writer.commit(Key(1, "candidates"), files)
    log = str(tmp_path / "root" / "runs" / "a" / "log")
    published = events.index(("link", f"{log}/{entry.number:010d}.json"))
    synced = [path for kind, path in events[:published] if kind == "fsync"]
    for file in files:
        path = tmp_path / "root" / file.path
        assert {str(path), str(path.parent)} <= set(synced)
    assert str(tmp_path / "root" / "runs" / "a") in synced  # where `rounds` was created
    assert synced[-1].startswith(f"{log}/{entry.number:010d}.json-")  # the staged bytes of the entry
    assert events[published + 1] == ("fsync", log)


def test_files_of_versions_with_and_without_a_column_are_one_table(store: Store) -> None:
    old, new = pa.table({"a": [1]}), pa.table({"a": [2], "b": ["x"]})
    files = [write_table(store, "run", 1, "candidates", table) for table in (old, new, old)]
    assert read_table(store, files).to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": 1, "b": None}]
