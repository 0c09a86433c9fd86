"""The shared cache: small values under digests, for all runs of a root."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.errors import InvalidEntryError, InvalidNameError
from storage.log.store import Store
from storage.retention.sweep import find_strays
from storage.tables.shared_values import SharedCache

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
