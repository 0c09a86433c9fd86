"""Labels: the newest counts, two people at once, damage is named, and nothing sweeps them away."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.errors import CorruptEntryError, InvalidEntryError
from storage.log.store import Store
from storage.retention.sweep import find_strays
from storage.tables.shared_values import Labels


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.open(tmp_path if request.param == "local" else "memory://")


def test_the_newest_choice_of_each_labeller_counts(store: Store) -> None:
    labels = Labels(store)
    assert labels.newest() == []
    labels.add("q1", "ann", {"choice": "tie"})
    labels.add("q1", "bob", {"choice": "skip"})
    labels.add("q1", "ann", {"choice": "withdrawn"})
    labels.add("q0", "ann", {"choice": "better", "better": "x"})
    found = [(one["question"], one["labeller"], one["choice"], one["number"]) for one in Labels(store).newest()]
    assert found == [("q0", "ann", "better", 0), ("q1", "ann", "withdrawn", 1), ("q1", "bob", "skip", 0)]


def test_two_terminals_of_one_labeller_lose_nothing(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: Labels(store).add("q", "ann", {"choice": "tie", "n": n}), range(20)))
    (newest,) = Labels(store).newest()
    assert newest["number"] == 19
    assert len(store.objects.keys("shared/labels")) == 20


def test_a_damaged_label_is_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    Labels(store).add("q", "ann", {"choice": "tie"})
    (path,) = (tmp_path / "shared").rglob("*.json")
    path.write_bytes(path.read_bytes().replace(b"tie", b"tei"))
    with pytest.raises(CorruptEntryError, match=rf"the label shared/labels/../{path.name} is damaged"):
        Labels(store).newest()


def test_no_sweep_takes_labels_away(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    Labels(store).add("q", "ann", {"choice": "tie"})
    assert find_strays(store, datetime.now(UTC) + timedelta(days=400)) == []


@pytest.mark.parametrize("name", ["", " ", "x" * 101])
def test_a_labeller_has_a_name(store: Store, name: str) -> None:
    with pytest.raises(InvalidEntryError, match="is no name of a labeller"):
        Labels(store).add("q", name, {"choice": "tie"})
