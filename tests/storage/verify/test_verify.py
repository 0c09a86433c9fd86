"""Whatever is damaged is found, and told as what it is; whatever is removed on purpose is not damage."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.registry.resume_check import CARRIED_STAGES
from flows.run.fork_history import import_parent_rounds
from storage.errors import InvalidNameError, RunNotFoundError
from storage.log.manifest import Entry, Key
from storage.log.store import Store
from storage.objects import layout
from storage.retention.prune import create_fork
from storage.tables.checkpoints import stage_shared
from storage.tables.shards import write_table
from storage.verify.log import check_log
from support.damage import DAMAGES, damaged, decode, paths, rewrite, write
from support.kept_run import (
    LAST,
    STAGES,
    WARM_START,
    add_rounds,
    add_table,
    kept_fork,
    kept_run,
    kept_with_fork,
    prune,
    verify,
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return kept_with_fork(tmp_path_factory.mktemp("kept"))


def test_a_whole_run(store: Store) -> None:
    """On every backend, with what was removed on purpose."""
    run = kept_run(store, "kept", 2)
    prune(store, run, ())
    found = verify(store, "kept")
    assert found.damages == ()
    assert (found.rounds, found.good, found.newest_good) == ((0, 1, 2), (0, 1, 2), 2)
    assert found.dropped == 3 * 3, "checkpoint, optimizer and average of round 1, three files each"
    named = {file.path for entry in run.entries() for file in entry.files}
    assert found.files == len(named) - found.dropped


def test_progress_ends_with_all_bytes(kept: Store) -> None:
    seen: list[tuple[int, int]] = []
    found = verify(kept, "kept", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.bytes, found.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_file_of_a_round(kept: Store, stage: str, how: str) -> None:
    """Of round 4, one at a time: only that round is spoilt, and round 3 is gone on from where 4 cannot be."""
    for name, path in paths(kept, stage, LAST).items():
        other = paths(kept, stage, 3)[name]
        with damaged(kept, path, how, other):
            found = verify(kept, "kept")
        bad = {3, LAST} if how == "swap" else {LAST}
        assert {damage.path for damage in found.damages} == ({path, other} if how == "swap" else {path})
        assert {damage.round for damage in found.damages} == bad
        assert set(found.good) == set(range(LAST + 1)) - bad
        newest = LAST if stage not in CARRIED_STAGES else (2 if how == "swap" else 3)
        assert found.newest_good == newest
        assert all(stage in damage.meaning for damage in found.damages)
        stops = ["nothing can go on from this round" in damage.meaning for damage in found.damages]
        assert set(stops) == {stage in CARRIED_STAGES}
    assert verify(kept, "kept").damages == ()


@pytest.mark.parametrize("how", DAMAGES)
def test_what_all_rounds_need(kept: Store, how: str) -> None:
    """The prompts, and the shared weights of round 0: without them nothing goes on."""
    needed = [*paths(kept, "prompts", 0).values(), *paths(kept, "checkpoint", 0).values()]
    assert len(needed) == 4
    for path in needed:
        other = paths(kept, "checkpoint", 3)["config.json"]
        with damaged(kept, path, how, other):
            found = verify(kept, "kept")
        assert path in {damage.path for damage in found.damages}
        (meaning,) = (damage.meaning for damage in found.damages if damage.path == path)
        assert "no round of " in meaning, meaning
        assert found.newest_good is None
        assert 0 not in found.good
        assert 2 in found.good


@pytest.mark.parametrize("how", DAMAGES)
def test_the_manifest_of_a_warm_start(kept: Store, how: str) -> None:
    path = layout.shared_manifest_key(*WARM_START)
    with damaged(kept, path, how, paths(kept, "checkpoint", 3)["config.json"]):
        found = verify(kept, "kept")
    (of_manifest,) = [damage for damage in found.damages if damage.path == path]
    assert "a new run that would share them stops" in of_manifest.meaning
    assert found.newest_good == LAST, "the run itself goes on"
    assert 0 in found.good


def test_a_warm_start_that_was_made_again_otherwise(tmp_path: Path) -> None:
    """Its manifest is intact, and is not what the run began with."""
    store = Store.open(tmp_path)
    kept_run(store, "kept", 1)
    key = layout.shared_manifest_key(*WARM_START)
    store.objects.delete([key])
    with stage_shared(store, *WARM_START) as staged:
        (staged.path / "model.safetensors").write_bytes(b"others")
    found = verify(store, "kept")
    assert [damage.problem for damage in found.damages] == [f"{key} names other files than the run"]
    assert found.good == (0, 1), "it names its files itself"


@pytest.mark.parametrize("how", DAMAGES)
def test_every_log_entry(kept: Store, how: str) -> None:
    """One at a time; of each kind one with all that ``verify`` does besides."""
    keys = kept.objects.keys(layout.log_prefix("kept"))
    kinds = {decode(kept, key).kind: key for key in keys[:-1]}
    assert kinds.keys() == {"run", "session", "commit", "round", "release", "close"}
    for at, key in enumerate(keys):
        if how == "delete" and at == len(keys) - 1:
            continue  # a log that ends one entry earlier is the log of a writer that was killed
        with damaged(kept, key, how, keys[at - 1]):
            damages = verify(kept, "kept").damages if key in kinds.values() else check_log(kept.objects, "kept")
        assert key in {damage.path for damage in damages}, (at, how)
        assert all("log entry" in damage.problem for damage in damages if damage.path == key)
    assert check_log(kept.objects, "kept") == []


def test_what_a_lost_entry_means(tmp_path: Path) -> None:
    """What a later snapshot holds costs no round; what none holds yet costs all that comes after it."""
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 3)
    prune(store, run, ())
    with run.writer() as writer:
        add_rounds(store, run, writer, 4)  # its snapshot knows of the tombstone
        add_table(store, run, writer, 5, "candidates", {"policy": run.rounds()[-1].meta["policy"]}, 0)
    keys = {}
    for key in store.objects.keys(layout.log_prefix("kept")):
        keys.setdefault(decode(store, key).kind, []).append(key)
    for key, meaning, spoils, round in (
        (keys["run"][0], "the recipe is lost", True, 0),
        (keys["commit"][0], "a later snapshot holds what it said of the rounds", False, 0),
        (keys["release"][0], "what it dropped is not known any more", False, 4),
        (keys["round"][3], "a later snapshot holds what it said of the rounds", False, 3),
        (keys["commit"][-1], "run 'kept' cannot be opened for writing", True, None),
    ):
        with damaged(store, key, "delete"):
            (found,) = check_log(store.objects, "kept")
        assert found.meaning.startswith(meaning)
        assert (found.path, found.spoils, found.round) == (key, spoils, round)
        assert found.problem.endswith(": it is missing")


@pytest.mark.parametrize("how", DAMAGES)
def test_every_snapshot(kept: Store, how: str) -> None:
    """It spoils no round, for the log has it all."""
    keys = kept.objects.keys(layout.snapshots_prefix("kept"))
    for number, key in enumerate(keys):
        with damaged(kept, key, how, keys[number - 1]):
            found = verify(kept, "kept")
        assert key in {damage.path for damage in found.damages}
        assert all("the next writer makes it again" in damage.meaning for damage in found.damages)
        assert found.good == tuple(range(LAST + 1))
        assert found.newest_good == LAST


@pytest.mark.parametrize("how", DAMAGES)
def test_a_writer_makes_damaged_snapshots_again(tmp_path: Path, how: str) -> None:
    store = Store.open(tmp_path)
    kept_run(store, "kept", 2)
    keys = store.objects.keys(layout.snapshots_prefix("kept"))
    intact = [store.objects.read(key) for key in keys]
    for key in keys:
        with damaged(store, key, how, next(other for other in keys if other != key)):
            run = store.run("kept")
            run.rounds()
            with run.writer():
                pass
            assert [store.objects.read(key) for key in keys] == intact
            assert verify(store, "kept").damages == ()


def test_an_entry_of_another_log(kept: Store) -> None:
    """Intact by itself, and in the wrong place."""
    mine, theirs = layout.entry_key("kept", 5), layout.entry_key("fork", 5)
    with damaged(kept, mine, "swap", theirs):
        for run, key in (("kept", mine), ("fork", theirs)):
            (damage,) = verify(kept, run).damages
            assert damage.path == key
            assert "does not belong to this log" in damage.problem


def test_a_fork_is_verified_with_its_parents_files(kept: Store) -> None:
    path = paths(kept, "candidates", 2)["table"]
    with damaged(kept, path, "flip"):
        found = verify(kept, "fork")
        assert [damage.path for damage in found.damages] == [path]
        assert found.good == (0, 1, 3, 4)
    assert verify(kept, "fork").damages == ()


def test_shards_of_one_stage_with_other_columns(tmp_path: Path) -> None:
    """Each is what was committed, and the stage cannot be read as one table."""
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 1)
    with run.writer() as writer:
        add_table(store, run, writer, 2, "candidates", None, 0)
        table = pa.table({"prompt_id": ["p"], "grade": [1]})
        other = write_table(store, "kept", 2, "candidates", table, 1)
        writer.commit(Key(2, "candidates", 1), [other])
        add_table(store, run, writer, 2, "candidates", None, 2)
    (damage,) = verify(store, "kept").damages
    assert (damage.path, damage.round) == (other.path, 2)
    assert damage.problem == f"{other.path} has other columns than the shards beside it"


def test_a_file_beside_the_committed_ones(kept: Store) -> None:
    directory = paths(kept, "checkpoint", LAST)["config.json"].removesuffix("config.json")
    kept.objects.create(directory + "model-2.safetensors", b"x")
    try:
        (damage,) = verify(kept, "kept").damages
        assert "was not committed, but would be loaded" in damage.problem
    finally:
        kept.objects.delete([directory + "model-2.safetensors"])


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_bit_of_any_file(kept: Store, data: st.DataObject) -> None:
    everything = [item for item in kept.objects.listing("runs/kept") if item.bytes] + kept.objects.listing("shared")
    item = data.draw(st.sampled_from(everything))
    bit = data.draw(st.integers(0, item.bytes * 8 - 1))
    old = kept.objects.read(item.key)
    new = bytearray(old)
    new[bit // 8] ^= 1 << bit % 8
    try:
        write(kept, {item.key: old}, {item.key: bytes(new)})
        assert item.key in {damage.path for damage in verify(kept, "kept").damages}
    finally:
        write(kept, {item.key: old}, {item.key: old})


def test_a_fork_whose_past_is_not_its_parents(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    fork = kept_fork(store, kept_run(store, "kept", 3), 2, "fork", 3)

    def change(old: Entry) -> Entry:
        hit = old.key is not None and (old.key.stage, old.round) in {("metrics", 1), ("metrics", 3)}
        return Entry(**{**vars(old), "files": ()}) if hit else old

    rewrite(store, fork, change)
    found = verify(store, "fork")
    assert [damage.problem for damage in found.damages] == ["metrics of round 1 is not what run 'kept' has"]
    assert found.good == (0, 2, 3), "round 3 is its own"


def test_a_damaged_header(kept: Store) -> None:
    with damaged(kept, layout.entry_key("kept", 0), "flip"):
        found = verify(kept, "kept")
    assert "the recipe is lost" in found.damages[0].meaning
    assert found.good == ()


def test_a_parent_that_is_gone(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 2)
    kept_fork(store, run, 1, "fork", 2)
    with damaged(store, layout.entry_key("kept", 0), "delete"):
        problems = [damage for damage in verify(store, "fork").damages if damage.round is None]
        assert [damage.problem.startswith("the parent: there is no run 'kept'") for damage in problems] == [True]


def test_no_run(kept: Store) -> None:
    with pytest.raises(RunNotFoundError, match="there is no run 'nowhere'"):
        verify(kept, "nowhere")
    with pytest.raises(InvalidNameError):
        verify(kept, "../runs/kept")


def test_an_older_run_without_tombstones(tmp_path: Path) -> None:
    """The log of a run that never dropped anything has no trace of tombstones, and opens as ever."""
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 1)
    assert run.dropped == {}
    child = create_fork(store, run, 1, "fork", {})
    assert child.header["parent"] == {"run": "kept", "round": 1}
    with child.writer() as writer:
        import_parent_rounds(store, child, writer)
        add_rounds(store, child, writer, 2)
    assert verify(store, "fork").damages == ()


def kept_policy(store: Store) -> None:
    """A run of rounds 0 to 3, of which round 3 had no update: it names the weights of round 2 as its own."""
    run = kept_run(store, "kept", 2)
    run.refresh()
    (before,) = run.entries(2, "checkpoint")
    with run.writer() as writer:
        for stage in ("checkpoint", "probe", "optimizer", "ema"):
            for entry in run.entries(2, stage):
                meta = {**entry.meta, "reference": before.meta["policy"]} if stage == "checkpoint" else entry.meta
                writer.commit(Key(3, stage), entry.files, meta)
        for stage in ("eval_candidates", "eval_judgments"):
            add_table(store, run, writer, 3, stage, {"policy": before.meta["policy"]})
        writer.finish_round(3, {"policy": before.meta["policy"], "round": 3})


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_a_file_that_two_rounds_name_spoils_both(tmp_path: Path, how: str) -> None:
    store = Store.open(tmp_path)
    kept_policy(store)
    assert verify(store, "kept").damages == ()
    path = paths(store, "checkpoint", 2)["model.safetensors"]
    with damaged(store, path, how):
        found = verify(store, "kept")
    assert {(damage.path, damage.round) for damage in found.damages} == {(path, 2), (path, 3)}
    assert (found.good, found.newest_good) == ((0, 1), 1)
    added = path.replace("model.safetensors", "added.json")
    write(store, {}, {added: b"{}"})
    assert {damage.round for damage in verify(store, "kept").damages} == {2, 3}


def test_weights_that_a_later_round_names_are_neither_pruned_nor_lost_to_a_fork(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    kept_policy(store)
    run = store.run("kept")
    prune(store, run, ())
    run.refresh()
    assert {entry.round for entry in run.entries() for file in entry.files if file.path in run.dropped} == {1}
    assert (verify(store, "kept").damages, verify(store, "kept").newest_good) == ((), 3)
    kept_fork(store, run, 3, "fork", 4)
    assert verify(store, "fork").good == (0, 1, 2, 3, 4)
    # Once a later round is the newest, both go together, and neither is called damage.
    with run.writer() as writer:
        add_rounds(store, run, writer, 4)
    planned = prune(store, run, ())
    assert planned.for_forks, "the fork names them still"
    assert verify(store, "kept").damages == ()
