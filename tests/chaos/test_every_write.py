"""A run is killed at each of its write operations, not at a sample of them, and ends as if nothing had happened."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.checkpoints import local_directory
from storage.shards import read_table
from storage.store import Store
from support import chaos
from support.small_run import Rondo, Whole

# A run begins (its header, and the test that the backend does not overwrite), a session begins (the same), a session
# ends, and the report is written.
FIXED = 2 + 2 + 1 + 1
# Five files and their manifest; checkpoint, prompts, probe and hand-over (4 entries, 2 tables).
PREPARED = 5 + 1 + 6
# Two shards of candidates and judgments; the round and its summary.
SAMPLED, ENDED = 2 * 2 * 2, 2
# Preferences (2), five files, metrics and probe (4), the checkpoint's entry, the hand-over, log-probabilities (2).
TRAINED = 2 + 5 + 4 + 1 + 1 + 2
OPERATIONS = FIXED + PREPARED + (SAMPLED + ENDED) + (SAMPLED + TRAINED + SAMPLED + ENDED)


def test_every_operation_is_known(whole: Whole) -> None:
    """So that the tests below are known to kill at every one of them."""
    assert len(whole.operations) == len(set(whole.operations)) == OPERATIONS, whole.operations


def test_killed_at_every_write(rondo: Rondo, whole: Whole, disk: Path) -> None:
    """SIGKILL before, in the middle of, and after each operation, in whichever process it is; then the run goes on."""
    entries = [name for name in whole.operations if name.startswith("entry ")]
    with ThreadPoolExecutor(2) as pool:  # two cores
        kills = dict(
            zip(chaos.KINDS, pool.map(lambda kind: _killed(rondo, whole, disk, kind), chaos.KINDS), strict=True)
        )
    for kind, covered in kills.items():
        assert covered == set(entries if kind == "linked" else whole.operations), kind


def test_a_worker_killed_at_every_write(rondo: Rondo, whole: Whole, disk: Path) -> None:
    """The worker alone, in the middle of each of its files: the flow starts it again, up to three times a step."""
    covered = disk / "covered"
    while (
        done := rondo.bring_on(disk / "root", environment=chaos.settings(covered, "torn", alone=True), ok=False)
    ).returncode:
        assert done.returncode == 1
        assert "process ended with status -9 in its work" in done.stderr
    worked = [name for name in whole.operations if name.startswith(("table ", "file ", "entry warm_starts"))]
    assert set(covered.read_text().splitlines()) == set(worked)
    whole.assert_same(disk / "root")


def _killed(rondo: Rondo, whole: Whole, disk: Path, kind: str) -> set[str]:
    """Kills runs, each at operation after operation, until none is left; returns the operations.

    A run that was killed after its last round has ended needs no writer any more: what a writer does then is left for
    the next run.
    """
    reached: set[str] = set()
    for attempt in range(4):
        root, covered = disk / f"{kind}{attempt}", disk / f"{kind}{attempt}.covered"
        covered.write_text("".join(f"{name}\n" for name in reached))
        before = len(reached)
        while (done := rondo.bring_on(root, environment=chaos.settings(covered, kind), ok=False)).returncode:
            assert done.returncode == -signal.SIGKILL, done.stderr
            _assert_intact(root)
        reached = set(covered.read_text().splitlines())
        if len(reached) == before:
            break
        whole.assert_same(root)
    return reached


def _assert_intact(root: Path) -> None:
    """What a reader is shown right after the kill is there, whole."""
    store = Store.open(root)
    for name in store.run_names():
        run = store.run(name)
        for entry in run.entries():
            if entry.key and entry.key.stage == "checkpoint":
                local_directory(store, entry.files, root)
            elif entry.files:
                read_table(store, entry.files)
