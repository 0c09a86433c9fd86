"""A run is killed at each of its write operations, not at a sample of them, and ends as if nothing had happened."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.log.store import Store
from storage.tables.checkpoints import local_directory
from storage.tables.shards import read_table
from support import chaos
from support.small_run import Rondo, Whole

# A run begins (its header, and the test that the backend does not overwrite), a session begins (the same), a session
# ends, and the report is written.
FIXED = 2 + 2 + 1 + 1
# Five files and their manifest; checkpoint, prompts, probe and hand-over (4 entries, 2 tables).
PREPARED = 5 + 1 + 6
# Two shards of candidates and judgments; the round and its summary.
SAMPLED, ENDED = 2 * 2 * 2, 2
# Preferences of two shards (2 each); the saved state of the update (4 files, its entry), given up in the end (an entry,
# and the deletion); five files, metrics and probe (4), the checkpoint's entry, the hand-over, log-probabilities (2).
TRAINED = 2 * 2 + (4 + 1 + 2) + 5 + 4 + 1 + 1 + 2
OPERATIONS = FIXED + PREPARED + (SAMPLED + ENDED) + (SAMPLED + TRAINED + SAMPLED + ENDED)


def test_every_operation_is_known(whole: Whole) -> None:
    """So that the tests below are known to kill at every one of them."""
    assert len(whole.operations) == len(set(whole.operations)) == OPERATIONS, whole.operations


def test_killed_at_every_write(rondo: Rondo, whole: Whole, disk: Path) -> None:
    """SIGKILL before, in the middle of, and after each operation, in whichever process it is; then the run goes on."""
    entries = {name for name in whole.operations if name.startswith("entry ")}
    wanted = {kind: entries if kind == "linked" else set(whole.operations) for kind in chaos.KINDS}
    with ThreadPoolExecutor(2) as pool:  # two cores
        reached = dict(pool.map(lambda kind: (kind, _killed(rondo, whole, disk, kind, wanted[kind])), chaos.KINDS))
    assert reached == wanted


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


def _killed(rondo: Rondo, whole: Whole, disk: Path, kind: str, wanted: set[str]) -> set[str]:
    """Kills runs, each at operation after operation, until none is left; returns the operations.

    A run that was killed after its last round had ended needs no writer any more: what a writer does then is left for
    the next run.
    """
    reached: set[str] = set()
    for attempt in range(7):
        root, covered = disk / f"{kind}{attempt}", disk / f"{kind}{attempt}.covered"
        covered.write_text("".join(f"{name}\n" for name in reached))
        while (done := rondo.bring_on(root, environment=chaos.settings(covered, kind), ok=False)).returncode:
            assert done.returncode == -signal.SIGKILL, done.stderr
            _assert_intact(root)
        whole.assert_same(root)
        reached = set(covered.read_text().splitlines())
        if reached >= wanted:
            break
    return reached


def _assert_intact(root: Path) -> None:
    """What a reader is shown right after the kill is there, whole."""
    store = Store.open(root)
    for name in store.run_names():
        run = store.run(name)
        for entry in run.entries():
            files = [file for file in entry.files if file.path not in run.dropped]
            if files and files[0].name is not None:
                local_directory(store, files, root)
            elif files:
                read_table(store, files)
