"""A root that is moved while it is in use: one sentence, and nothing is made again at the place that it had."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import BackendError, StoreError
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory, stage_shared
from storage.tables.shards import write_table

TABLE = pa.table({"a": [1]})


def stage(store: Store) -> None:
    with stage_directory(store, "a", 1, "checkpoint") as staged:
        (staged.path / "model.safetensors").write_bytes(b"x")


WRITES: dict[str, Callable[[Store], object]] = {
    "a table": lambda store: write_table(store, "a", 1, "candidates", TABLE),
    "a directory": stage,
    "a log entry": lambda store: store.objects.create("runs/a/log/0000000009.json", b"x"),
    "a run": lambda store: store.create_run("b", {}),
    "a listing": lambda store: store.run_names(),
    "a removal": lambda store: store.objects.delete(["runs/a/x"]),
    "another process": lambda store: Store.open(store.root, create=False),
}


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_made_again(tmp_path: Path, write: str) -> None:
    store = Store.open(tmp_path / "root")
    store.create_run("a", {})
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match=rf"the root {tmp_path}/root is gone, moved or removed since it was opened"):
        WRITES[write](store)
    assert os.listdir(tmp_path) == ["elsewhere"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_library_that_makes_the_directory_again(tmp_path: Path, shared: bool) -> None:
    """As ``save_pretrained`` does, for each of its files: the directory was moved away below its hands."""
    store = Store.open(tmp_path / "root")
    store.create_run("a", {})

    def save() -> None:
        place = stage_shared(store, "warm_starts", "0" * 16) if shared else stage_directory(store, "a", 1, "checkpoint")
        with place as staged:
            (staged.path / "model.safetensors").write_bytes(b"x")
            (tmp_path / "root").rename(tmp_path / "elsewhere")
            staged.path.mkdir(parents=True)
            (staged.path / "tokenizer.json").write_text("{}")

    with pytest.raises(StoreError, match="is gone, moved or removed since it was opened"):
        save()
    assert os.listdir(tmp_path) == ["elsewhere"]


def test_put_back_it_is_used_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "root")
    store.create_run("a", {})
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    with pytest.raises(BackendError):
        store.run("a")
    (tmp_path / "elsewhere").rename(tmp_path / "root")
    stage(store)
    assert store.run_names() == ["a"]
