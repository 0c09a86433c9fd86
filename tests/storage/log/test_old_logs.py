"""Logs of version 0.1.0, which marks a commit that was made the newest again with "+" in its hash of inputs."""

import pytest

from storage.log.manifest import Entry, FileRef, Key, decode_entry, digest_of, encode_entry, seal, unseal
from storage.log.store import Store
from storage.objects import layout
from support.old_stores import expected, unpack

VERSION = "0.1.0"
MARKED = expected(VERSION)["runs"]["finished"]["renewed"][1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(unpack(VERSION, tmp_path_factory.mktemp("old"))))


def _of_0_1_0(number: int, inputs: str, parent: bytes, files: str = "") -> bytes:
    """A commit in the bytes that 0.1.0 wrote for it."""
    path = f"runs/a/rounds/0001/preferences-all-{files or inputs}.parquet"
    return seal(
        {
            "format": 1, "number": number, "kind": "commit", "session": "s", "meta": {}, "parent": digest_of(parent),
            "key": {"round": 1, "stage": "preferences", "inputs": inputs}, "time": "2026-01-01T00:00:00.000Z",
            "files": [{"path": path, "bytes": 1, "sha256": "0" * 64, "rows": 1}],
        },
        "an entry",
    )  # fmt: skip


def _paths(files: list[FileRef]) -> list[str]:
    return [file.path.rpartition("-")[2].removesuffix(".parquet") for file in files]


def test_a_marked_key_is_a_renewal_of_its_piece_of_work() -> None:
    plain, marked, twice = (decode_entry(_of_0_1_0(9, inputs, b"", "x")) for inputs in ("x", "x+5", "x+5+7"))
    assert [entry.key and (entry.key.inputs, entry.key.renewal) for entry in (plain, marked, twice)] == [
        ("x", 0), ("x", 5), ("x", 7),
    ]  # fmt: skip
    assert plain.key is not None
    assert all(entry.key is not None and entry.key.piece == plain.key.piece for entry in (marked, twice))
    assert len({plain.key, marked.key, twice.key}) == 3
    for entry in (plain, marked, twice):
        assert decode_entry(encode_entry(entry)) == entry


def test_a_marked_commit_is_the_newest_and_its_run_goes_on() -> None:
    """x, y, x again, y again and x once more, each the newest when it was written; then y by today's."""
    store = Store.open("memory://")
    run = store.create_run("a", {})
    with run.writer() as writer:
        data = store.objects.read(layout.entry_key("a", 1))
        for number, inputs in enumerate(("x", "y", "x+3", "y+4", "x+3+5"), 2):
            data = _of_0_1_0(number, inputs, data, inputs[0])
            assert store.objects.create(layout.entry_key("a", number), data)
            assert _paths(store.run("a").files(1, "preferences")) == [inputs[0]]
        run.refresh()
        x, y = (_found(run.find(Key(1, "preferences", inputs=inputs))) for inputs in "xy")
        assert [entry.number for entry in run.work(1)] == [x.number, y.number] == [2, 3]
        assert writer.renew(x) == x, "it is the newest already"
        assert _found(writer.renew(y)).number == 7
        writer.finish_round(1, {})
    for reader in (run, store.run("a")):
        assert _paths(reader.files(1, "preferences")) == ["y"]
        assert [entry.number for entry in reader.entries(1)] == [2, 3, 4, 5, 6, 7]
        assert reader.work(1) == [x, y]


@pytest.mark.parametrize("summaries", [True, False], ids=["summaries", "log alone"])
def test_the_log_that_0_1_0_wrote(store: Store, summaries: bool) -> None:
    """Read through its summaries, and entry by entry."""
    if not summaries:
        copy = Store.open("memory://")
        for key in store.objects.keys(layout.log_prefix("finished")):
            copy.objects.create(key, store.objects.read(key))
        store = copy
    run = store.run("finished")
    commits, work = run.entries(1), run.work(1)
    marked = [entry for entry in commits if entry not in work]
    assert len(marked) == MARKED
    for entry in marked:
        written = unseal(store.objects.read(layout.entry_key("finished", entry.number)))
        inputs, _, after = written["key"]["inputs"].partition("+")
        first = run.find(Key(1, entry.key.stage, entry.key.shard, inputs)) if entry.key else None
        assert _found(first) in work
        assert (_found(first).files, _found(first).meta) == (entry.files, entry.meta)
        assert int(after) < entry.number
    (checkpoint,) = (entry for entry in marked if entry.key and entry.key.stage == "checkpoint")
    assert run.files(1, "checkpoint") == list(checkpoint.files)
    assert checkpoint.meta["policy"] == run.rounds()[1].meta["policy"]


def _found(entry: Entry | None) -> Entry:
    assert entry is not None
    return entry
