"""What the next round reads is looked at before any work starts; a damaged run says from where it can be forked."""

from pathlib import Path

import pytest

from flows.registry.resume_check import CARRIED_STAGES, check_inputs, open_to_go_on
from storage.errors import CorruptEntryError, DamagedFileError
from storage.log.store import Store
from storage.objects import layout
from support.damage import damaged, paths
from support.kept_run import LAST, STAGES, add_table, kept_fork, kept_run, kept_with_fork, verify


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return kept_with_fork(tmp_path_factory.mktemp("kept"))


def test_resume_names_the_newest_good_checkpoint(kept: Store) -> None:
    """Every input of the next round, damaged one at a time, is found before any work starts."""
    check_inputs(kept, kept.run("kept"))
    for stage in CARRIED_STAGES:
        for path in paths(kept, stage, LAST).values():
            with damaged(kept, path, "flip"), pytest.raises(DamagedFileError) as caught:
                check_inputs(kept, kept.run("kept"))
            assert str(caught.value).startswith(f"run 'kept' cannot go on: the bytes of {path} are not those")
            assert "the newest good checkpoint is that of round 3: 'rondo fork kept@3 --name NEW'" in str(caught.value)
    for stage in set(STAGES) - set(CARRIED_STAGES):
        with damaged(kept, paths(kept, stage, LAST)["table"], "flip"):
            check_inputs(kept, kept.run("kept"))  # no round reads it again


def test_resume_with_a_damaged_shard_of_the_unfinished_round(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 2)
    with run.writer() as writer:
        add_table(store, run, writer, 3, "candidates", None, 0)
    (path,) = [file.path for entry in run.unfinished() for file in entry.files]
    with damaged(store, path, "truncate"), pytest.raises(DamagedFileError, match="fork kept@2 --name NEW"):
        check_inputs(store, store.run("kept"))


def test_a_damaged_end_of_the_log_is_forked_around(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    kept_run(store, "kept", 2)
    with store.run("kept").writer():
        pass
    last = store.objects.keys(layout.log_prefix("kept"))[-1]
    with damaged(store, last, "flip"):
        with pytest.raises(CorruptEntryError, match=r"is damaged.*'rondo fork kept@2 --name NEW' continues from it"):
            open_to_go_on(store, "kept")
        rescued = kept_fork(store, store.run("kept", intact_part=True), 2, "rescued", 3)
        assert rescued.finished == [0, 1, 2, 3]
        assert verify(store, "rescued").damages == ()
        with pytest.raises(CorruptEntryError), store.run("kept", intact_part=True).writer():
            pass
