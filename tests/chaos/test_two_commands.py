"""Two commands that want the same run at the same moment."""

import time
from collections.abc import Sequence
from pathlib import Path

from storage.log.store import Store
from support.forkserver import Command
from support.small_run import Rondo, Whole

RACES = 10  # of whole commands; tests/storage has a hundred of writers


def test_one_of_two_resumes_gets_the_run(rondo: Rondo, whole: Whole, disk: Path) -> None:
    """The other ends with one sentence that names the run, who has it, and what to do; the first goes on unharmed."""
    header = Store.open(whole.root).run("small").header
    for number in range(RACES):
        root = disk / str(number)
        Store.open(root).create_run("small", header)
        commands = [rondo.begin("resume", "small", "--root", str(root)) for _ in range(2)]
        loser = _first_to_end(commands)
        winner = commands[1 - loser]
        refused = commands[loser].wait()
        assert refused.returncode == 1
        sentence = refused.stderr.replace("\n", " ")
        assert "error: run 'small' is written by process" in sentence
        assert "wait for it, or stop it" in sentence
        assert "Traceback" not in refused.stderr
        if number < RACES - 1:
            winner.kill()
        else:
            done = winner.wait()
            assert done.returncode == 0, done.stderr
            whole.assert_same(root)


def _first_to_end(commands: Sequence[Command]) -> int:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for index, command in enumerate(commands):
            if command.ended:
                return index
        time.sleep(0.01)
    raise AssertionError("neither command ended")
