"""Values of no run: the shared cache, and labels, of which the newest counts; nothing sweeps them away."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.errors import CorruptEntryError, InvalidEntryError, InvalidNameError
from storage.log.store import Store
from storage.retention.sweep import find_strays
from storage.tables.shared_values import Labels, SharedCache

KEY = "ab" * 32


@pytest.mark.parametrize("root", ["local", "memory"])
def test_what_was_put_is_there(root: str, tmp_path: Path) -> None:
    store = Store.open(tmp_path if root == "local" else "memory:///")
    cache = SharedCache(store, "judge_replies")
    assert cache.get(KEY) is None
    cache.put(KEY, {"content": "é\n", "tokens": [["a", {"b": -1.5}]], "none": None})
    cache.put(KEY, {"content": "another"})
    assert cache.get(KEY) == {"content": "é\n", "tokens": [["a", {"b": -1.5}]], "none": None}
    assert SharedCache(store, "others").get(KEY) is None
    with pytest.raises(InvalidNameError):
        cache.get("../../escape")
    with pytest.raises(InvalidEntryError):
        cache.put("cd" * 32, {"score": float("nan")})


def test_it_outlives_the_process_and_every_sweep(tmp_path: Path) -> None:
    SharedCache(Store.open(tmp_path), "judge_replies").put(KEY, {"content": "x"})
    store = Store.open(tmp_path)
    assert find_strays(store, datetime.now(UTC) + timedelta(days=999)) == []
    assert SharedCache(store, "judge_replies").get(KEY) == {"content": "x"}


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"content":"y","digest":"00"}'])
def test_a_damaged_value_is_asked_for_again(tmp_path: Path, damage: bytes) -> None:
    cache = SharedCache(Store.open(tmp_path), "judge_replies")
    cache.put(KEY, {"content": "x"})
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(damage)
    assert cache.get(KEY) is None
    cache.put(KEY, {"content": "x"})
    assert cache.get(KEY) == {"content": "x"}


def test_many_at_once(tmp_path: Path) -> None:
    cache = SharedCache(Store.open(tmp_path), "judge_replies")
    keys = [f"{number:064x}" for number in range(40)] * 2
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: cache.put(key, {"key": key}), keys))
    assert all(cache.get(key) == {"key": key} for key in keys)


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


def test_all_that_a_labeller_has_said_of_a_question_is_there(store: Store) -> None:
    labels = Labels(store)
    kept = [labels.add("q1", "ann", {"choice": choice}) for choice in ("tie", "withdrawn", "tie")]
    labels.add("q1", "bob", {"choice": "skip"})
    labels.add("q2", "ann", {"choice": "skip"})
    assert labels.history("q1", "ann") == Labels(store).history("q1", "ann") == kept
    assert labels.history("q2", "bob") == []


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
    with pytest.raises(CorruptEntryError, match=rf"the label shared/labels/../{path.name} is damaged"):
        Labels(store).history("q", "ann")


def test_no_sweep_takes_labels_away(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    Labels(store).add("q", "ann", {"choice": "tie"})
    assert find_strays(store, datetime.now(UTC) + timedelta(days=400)) == []


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "\ud800"])
def test_a_labeller_has_a_name(store: Store, name: str) -> None:
    with pytest.raises(InvalidEntryError, match="is no name of a labeller"):
        Labels(store).add("q", name, {"choice": "tie"})


def test_who_keeps_looking_sees_what_others_add_and_what_is_gone(store: Store) -> None:
    """Choices are read once, and listed each time."""
    looking = Labels(store)
    kept = Labels(store).add("q", "ann", {"choice": "tie"})
    assert looking.newest() == [kept]
    (key,) = store.objects.keys("shared/labels")
    changed = Labels(store).add("q", "ann", {"choice": "skip"})
    assert (changed["number"], looking.newest()) == (1, [changed])
    store.objects.delete([other for other in store.objects.keys("shared/labels") if other != key])
    assert looking.newest() == [kept]
