"""The scratch directory of a run: empty at the start, gone at the end, and nobody else's meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.host.scratch import held_directory, scratch_directory
from storage.errors import StorageAccessError
from storage.log.store import Store


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def kill_in(block: str, temporary: Path) -> None:
    """A process that writes a file into its directory, and is killed there."""
    script = (
        f"import os, signal\nfrom flows.host.scratch import *\n"
        f"with {block} as path:\n    (path / 'file').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(temporary)}, check=False)


def test_what_a_killed_run_left_is_removed(temporary: Path) -> None:
    """By the next process of that run, and by no other run."""
    kill_in("scratch_directory('a')", temporary)
    (left,) = temporary.iterdir()
    assert (left / "file").exists()
    with scratch_directory("b"):
        assert left.exists()
        with scratch_directory("a") as again:
            assert list(again.iterdir()) == []
            assert not left.exists()
    assert list(temporary.iterdir()) == []


def test_what_somebody_holds_stays(temporary: Path) -> None:
    """A second process with the same run, such as one that took it over, has a directory of its own."""
    with scratch_directory("a") as first:
        (first / "checkpoints" / "ab").mkdir(parents=True)
        with scratch_directory("a") as second:
            assert second != first
        assert (first / "checkpoints" / "ab").exists()
    assert list(temporary.iterdir()) == []


def test_runs_of_the_same_name_under_the_same_root_are_told_apart() -> None:
    """As in two buckets of one name, at two endpoints."""
    first, second = (Store.open("memory://").create_run("demo", {}) for _ in range(2))
    assert (first.name, first.header) == (second.name, second.header)
    assert first.identity != second.identity


def test_the_logs_of_a_run_that_failed_stay(temporary: Path) -> None:
    def fail() -> None:
        with scratch_directory("a") as path:
            (path / "checkpoints" / "ab").mkdir(parents=True)
            (path / "trainer.log").write_text("why")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    (path,) = temporary.iterdir()
    assert [left.name for left in path.iterdir()] == ["trainer.log"]
    with scratch_directory("a"):
        assert not path.exists()


def test_a_link_in_its_place_is_left_alone(temporary: Path) -> None:
    with scratch_directory("a") as path:
        pass
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / "kept").touch()
    path.symlink_to(temporary / "elsewhere")
    with scratch_directory("a") as another:
        assert (another.is_symlink(), another.stat().st_mode & 0o077) == (False, 0)
    assert (temporary / "elsewhere" / "kept").exists()


def test_one_that_was_removed_is_said(temporary: Path) -> None:
    """What failed then names some file below it, and not the reason."""

    def fail() -> None:
        with scratch_directory("a") as path:
            path.rmdir()
            (path / "copy").mkdir()

    with pytest.raises(StorageAccessError, match=r"rondo-\S+, where this run kept its temporary files, was removed"):
        fail()
    assert list(temporary.iterdir()) == []


def test_a_held_directory_outlives_nobody(temporary: Path) -> None:
    """What a killed process left is removed by the next one; what a living one holds is not."""
    kill_in("held_directory('held')", temporary)
    (left,) = temporary.iterdir()
    assert (left / "file").exists()
    with held_directory("held") as first:
        assert list(temporary.iterdir()) == [first]
        with held_directory("held") as second:
            assert {*temporary.iterdir()} == {first, second}
    assert list(temporary.iterdir()) == []
