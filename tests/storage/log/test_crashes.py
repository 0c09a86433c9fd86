"""A process killed at any write, a disk that is full or read-only."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import store_faults
from store_faults import Crash, contents, faulty, killed_run, small_run

from storage.log.store import Store

# run, its probe; session, its probe; for each of two rounds: two shards (data, entry), checkpoint entry, round,
# snapshot; close. The checkpoint's two files are written in place on a local disk, and by the objects elsewhere.
LOCAL_WRITES = 2 + 2 + 2 * 7 + 1
OTHER_WRITES = LOCAL_WRITES + 2 * 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    store = Store.open("memory://")
    small_run(store)
    return contents(store, tmp_path_factory.mktemp("cache"))


def test_number_of_writes() -> None:
    """So that the tests below are known to kill at every one of them."""
    store = faulty(Store.open("memory://"))
    small_run(store)
    assert store.objects.writes == OTHER_WRITES


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.nightly), "after"])
def test_killed_at_every_write(disk: Path, tmp_path: Path, processes, undisturbed: list[object], when: str) -> None:
    """SIGKILL; the next process goes on to the same end."""
    for at in range(LOCAL_WRITES):
        root = disk / f"{at}"
        child = processes.Process(target=killed_run, args=(str(root), at, when))
        child.start()
        child.join(30)
        assert child.exitcode == -9
        store = Store.open(root)
        for name in store.run_names():
            store.run(name).entries()  # a reader copes
        small_run(store)
        assert contents(store, tmp_path / "cache") == undisturbed, (at, when)
        written = faulty(store)
        small_run(written)
        assert written.objects.writes == 3, "a finished run writes its session, the probe and the close, no more"


@pytest.mark.parametrize("when", ["before", "after"])
def test_crashed_at_every_write(
    store: Store, tmp_path: Path, act_as: Callable[[str], None], undisturbed: list[object], when: str
) -> None:
    for at in range(LOCAL_WRITES if store.is_local else OTHER_WRITES):
        name = f"small-{at}"
        act_as("dead")
        with pytest.raises(Crash):
            small_run(faulty(store, at, when), name)
        act_as("self")
        small_run(store, name)
        assert contents(store, tmp_path / "cache", name) == undisturbed, (at, when)


def _in_small_disk(script: str, tests: Path) -> subprocess.CompletedProcess[str]:
    mount = 'mount -t tmpfs -o size=1M none /mnt && exec "$0" -c "$1" "$2"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, sys.executable, script, str(tests)],
        capture_output=True, text=True, timeout=300, check=False, cwd=Path(store_faults.__file__).parents[2],
    )  # fmt: skip


FULL_DISK = """
import sys; sys.path.insert(0, sys.argv[1])
import pyarrow as pa
from pathlib import Path
from storage.tables.checkpoints import stage_directory
from storage.errors import StorageFullError
from storage.log.manifest import Key
from storage.tables.shards import write_table
from storage.log.store import Store
from store_faults import contents, small_run

store = Store.open("/mnt/root")
run = small_run(store)
before = contents(store, Path("/tmp"))
big = pa.table({"x": pa.array([str(i * 7919) for i in range(400_000)])})

def table():
    write_table(store, "small", 3, "candidates", big)

def directory():
    with stage_directory(store, "small", 3, "checkpoint") as staged:
        (staged.path / "model.safetensors").write_bytes(b"x" * 2**21)

def entry():
    with run.writer() as writer:
        writer.commit(Key(3, "candidates"), [], {"x": "y" * 2**21})

for attempt in (table, directory, entry):
    try:
        attempt()
    except OSError as error:
        print(attempt.__name__, type(error).__name__, error)
left = [str(p) for p in Path("/mnt/root").rglob("*") if p.is_file() and ("rounds/0003" in str(p) or "#" in p.name)]
assert left == [], left
assert contents(store, Path("/tmp")) == before
with store.run("small").writer() as writer:
    writer.commit(Key(3, "candidates"), [])
print("resumed")
"""

READ_ONLY_DISK = """
import sys; sys.path.insert(0, sys.argv[1])
import pyarrow as pa, subprocess
from pathlib import Path
from storage.errors import StorageAccessError
from storage.tables.shards import write_table
from storage.log.store import Store
from store_faults import contents, small_run

store = Store.open("/mnt/root")
small_run(store)
before = contents(store, Path("/tmp"))
subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
store = Store.open("/mnt/root")
assert contents(store, Path("/tmp")) == before
for attempt in (
    lambda: store.create_run("b", {}),
    lambda: store.run("small").writer().__enter__(),
    lambda: write_table(store, "small", 3, "candidates", pa.table({"x": [1]})),
    lambda: Store.open("/mnt/other"),
):
    try:
        attempt()
    except StorageAccessError as error:
        print(error)
"""


@pytest.fixture
def needs_mount() -> None:
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine lets no test mount a small file system")


def test_full_disk(needs_mount: None) -> None:
    done = _in_small_disk(FULL_DISK, Path(store_faults.__file__).parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["table", "directory", "entry", "resumed"]
    assert lines[0].startswith(
        "table StorageFullError no room left to write /mnt/root/runs/small/rounds/0003/candidates-all"
    )
    assert lines[2].startswith("entry StorageFullError no room left to write /mnt/root/runs/small/log/")


def test_read_only_disk(needs_mount: None) -> None:
    done = _in_small_disk(READ_ONLY_DISK, Path(store_faults.__file__).parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all("Read-only file system; check its permissions" in line for line in lines)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_denied(tmp_path: Path) -> None:
    from storage.errors import StorageAccessError

    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StorageAccessError, match="Permission denied"):
        Store.open(tmp_path / "closed" / "root")
