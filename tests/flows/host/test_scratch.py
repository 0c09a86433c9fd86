"""The scratch directory of a run: empty at the start, gone at the end, and nobody else's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.host.scratch import held_directory, scratch_directory
from storage.errors import StorageAccessError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_run_left_is_removed(temporary: Path) -> None:
    with scratch_directory("s3://b/root", "a") as path:
        (path / "checkpoints" / "ab").mkdir(parents=True)
        with scratch_directory("s3://b/root", "other") as other:
            assert other != path
        with scratch_directory("s3://b/root", "a") as again:  # as the next process finds it
            assert again == path
            assert list(path.iterdir()) == []
    assert list(temporary.iterdir()) == []


def test_the_logs_of_a_run_that_failed_stay(temporary: Path) -> None:
    def fail() -> None:
        with scratch_directory("s3://b/root", "a") as path:
            (path / "checkpoints" / "ab").mkdir(parents=True)
            (path / "trainer.log").write_text("why")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    (path,) = temporary.iterdir()
    assert [left.name for left in path.iterdir()] == ["trainer.log"]


def test_a_link_in_its_place_is_refused(temporary: Path) -> None:
    with scratch_directory("root", "a") as path:
        pass
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / "kept").touch()
    path.symlink_to(temporary / "elsewhere")
    with pytest.raises(StorageAccessError, match="not this user's alone"), scratch_directory("root", "a"):
        pass
    assert (temporary / "elsewhere" / "kept").exists()


def test_a_held_directory_outlives_nobody(temporary: Path) -> None:
    """What a killed process left is removed by the next one; what a living one holds is not."""
    script = (
        "import os, signal\nfrom flows.host.scratch import held_directory\n"
        "with held_directory('held') as path:\n    (path / 'file').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(temporary)}, check=False)
    (left,) = temporary.iterdir()
    assert (left / "file").exists()
    with held_directory("held") as first:
        assert list(temporary.iterdir()) == [first]
        with held_directory("held") as second:
            assert {*temporary.iterdir()} == {first, second}
    assert list(temporary.iterdir()) == []
