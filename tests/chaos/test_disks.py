"""A whole run on a disk that is full, or read-only, under a root whose name has every odd character in it."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import chaos, small_disk
from support.forkserver import forkserver
from support.small_run import Rondo, Whole

ROOT = f"{small_disk.MOUNTED}/odd näme #1, 50% of 'it' \"quoted\" $HOME * ünï\u2028\t?x=1&y"
# From nothing at all to what the tables of a round need, but not its weights.
ROOM = (0, 131_072, 262_144, 393_216, 524_288, 1_048_576)
LEAST_BYTES = 240_000  # half of what a round of this recipe writes, which a run is refused without


@pytest.fixture(scope="module")
def on_small_disk(rondo: Rondo, forked: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rondo]:
    """The command line in processes that see a disk of 24 MB at /mnt."""
    if not small_disk.possible():
        pytest.skip("this machine lets no test mount a small file system")
    directory = tmp_path_factory.mktemp("d")
    with forkserver(directory, forked, small_disk.PREFIX) as server:
        yield Rondo(server, rondo.recipe, directory)


@pytest.fixture(scope="module")
def disk_command(on_small_disk: Rondo) -> Callable[..., str]:
    def command(*arguments: str) -> str:
        done = on_small_disk.server.run("support.small_disk", *arguments, directory=on_small_disk.outputs)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return command


def test_full_and_read_only(
    on_small_disk: Rondo, disk_command: Callable[..., str], whole: Whole, tmp_path: Path
) -> None:
    """One clear sentence each time, what was committed stays as it was, and with room again the run ends as ever."""
    resume = ["resume", "small", "--root", ROOT]
    begun = chaos.settings(tmp_path / "covered", "after", only=["entry summary 0"])
    killed = on_small_disk(*on_small_disk.start(), "--root", ROOT, environment=begun, ok=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    committed = set(disk_command("digests", ROOT).splitlines())
    assert len(committed) > 15
    sentences = []
    for room in ROOM:
        disk_command("leave", str(room))
        done = on_small_disk(*resume, ok=False)
        assert done.returncode == 1, (room, done.stderr)
        assert "Traceback" not in done.stderr
        said = " ".join(done.stderr.split())
        # What the disk surely cannot hold is refused before a session begins.
        refused = "free, and 1 round of this recipe write about" in said and "make room, take another --root" in said
        failed = "no room left" in said and "free some space, then resume" in said
        assert failed != refused, (room, said)
        assert failed or room < LEAST_BYTES
        sentences.append(done.stderr)
        disk_command("free")
        assert committed <= set(disk_command("digests", ROOT).splitlines()), room
    assert any("update_state" in sentence or "checkpoint" in sentence for sentence in sentences)

    disk_command("remount", "ro")
    done = on_small_disk(*resume, ok=False)
    assert done.returncode == 1
    assert "Read-only file system; check its permissions" in done.stderr.replace("\n", " ")
    assert "small" in on_small_disk("rounds", "small", "--root", ROOT).stdout
    disk_command("remount", "rw")

    on_small_disk(*resume)
    disk_command("same", str(whole.root), ROOT)
