"""A run is killed at its write operations, and ends as if nothing had happened: one of each sort, and nightly all."""

import re
import signal
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest

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
# and the deletion); five files, metrics, probe and preferences' log-probabilities (6), the checkpoint's entry, the
# hand-over, log-probabilities (2).
TRAINED = 2 * 2 + (4 + 1 + 2) + 5 + 6 + 1 + 1 + 2
OPERATIONS = FIXED + PREPARED + (SAMPLED + ENDED) + (SAMPLED + TRAINED + SAMPLED + ENDED)


def test_every_operation_is_known(whole: Whole) -> None:
    """So that the tests below are known to kill at every one of them."""
    assert len(whole.operations) == len(set(whole.operations)) == OPERATIONS, whole.operations


def test_the_sample_leaves_out_no_sort(whole: Whole) -> None:
    """Each sort of write is there, and each mechanism with every kind of kill that there is for it."""
    dealt = sampled(whole.operations)
    assert {_sort(name) for names in dealt.values() for name in names} == {_sort(name) for name in whole.operations}
    met = {(_mechanism(name), kind) for kind, names in dealt.items() for name in names}
    mechanisms = {"entry", "table", "file", "delete", "report.html"}
    assert met == {(one, kind) for one in mechanisms for kind in chaos.KINDS if kind != "linked" or one == "entry"}
    assert sum(map(len, dealt.values())) < OPERATIONS


def test_killed_at_one_write_of_each_sort(rondo: Rondo, whole: Whole, disk: Path) -> None:
    """SIGKILL before, in the middle of, or after it, in whichever process it is; then the run goes on."""
    _assert_killed(rondo, whole, disk, sampled(whole.operations), only=True)


@pytest.mark.nightly
def test_killed_at_every_write(rondo: Rondo, whole: Whole, disk: Path) -> None:
    """The same before, in the middle of, and after each operation."""
    entries = {name for name in whole.operations if name.startswith("entry ")}
    wanted = {kind: entries if kind == "linked" else set(whole.operations) for kind in chaos.KINDS}
    _assert_killed(rondo, whole, disk, wanted, only=False)


def _assert_killed(rondo: Rondo, whole: Whole, disk: Path, wanted: dict[str, set[str]], *, only: bool) -> None:
    """Kills at what is wanted; at whatever else there is too, which would be a surprise, if not at that ``only``."""

    def killed(kind: str) -> set[str]:
        return _killed(rondo, whole, disk, kind, wanted[kind], sorted(wanted[kind]) if only else ())

    with ThreadPoolExecutor(2) as pool:  # two cores
        reached = dict(zip(chaos.KINDS, pool.map(killed, chaos.KINDS), strict=True))
    assert reached == wanted


def sampled(operations: Collection[str]) -> dict[str, set[str]]:
    """The last operation of each sort, dealt in turn to the kinds of kill; each mechanism meets every kind.

    A mechanism is an entry, a table, a file of a directory, a deletion or the report. A sort is a mechanism and what is
    written by it, whichever the round, the shard and the file of a directory.
    """
    last = {_sort(name): name for name in operations}
    dealt: dict[str, set[str]] = {kind: set() for kind in chaos.KINDS}
    for mechanism in sorted({_mechanism(name) for name in operations}):
        names = [name for name in last.values() if _mechanism(name) == mechanism]
        kinds = [kind for kind in chaos.KINDS if kind != "linked" or mechanism == "entry"]
        turns = max(len(names), len(kinds))
        for _, name, kind in zip(range(turns), cycle(names), cycle(kinds), strict=False):
            dealt[kind].add(name)
    return dealt


def _mechanism(name: str) -> str:
    return name.split(" ", 1)[0]


def _sort(name: str) -> str:
    mechanism, _, rest = name.partition(" ")
    if mechanism == "file":
        rest = rest.rpartition("/")[0]
    return f"{mechanism} {re.sub(r'[0-9]+', '', rest)}"


@pytest.mark.nightly
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


def _killed(rondo: Rondo, whole: Whole, disk: Path, kind: str, wanted: set[str], only: Sequence[str]) -> set[str]:
    """Kills runs, each at operation after operation, until none of the wanted is left; returns the operations.

    A run that was killed after its last round had ended needs no writer any more: what a writer does then is left for
    the next run.
    """
    reached: set[str] = set()
    for attempt in range(7):
        root, covered = disk / f"{kind}{attempt}", disk / f"{kind}{attempt}.covered"
        covered.write_text("".join(f"{name}\n" for name in reached))
        while (done := rondo.bring_on(root, environment=chaos.settings(covered, kind, only=only), ok=False)).returncode:
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
