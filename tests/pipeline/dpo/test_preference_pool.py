"""Preferences come back from the file as they were, and take no memory while they are in it."""

import random
import tempfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dpo.preference_pool import PreferencePool
from pipeline.dpo.types import PreferenceGroup
from pipeline.errors import NoRoomError

tokens = st.lists(st.integers(0, 2**31), min_size=1, max_size=5)
nats = st.floats(allow_nan=False, allow_infinity=False)
pairs = st.builds(
    PreferenceGroup,
    prompt_id=st.text(),
    prompt_token_ids=tokens,
    candidate_token_ids=st.lists(tokens, min_size=2, max_size=2),
    reference_logps=st.lists(nats, min_size=2, max_size=2),
    ranks=st.none() | st.just([0, 1]),
    soft_label=st.none() | st.floats(0, 1),
)


@given(st.lists(st.lists(pairs, max_size=4), max_size=4))
def test_what_was_added_comes_back(shards: list[list[PreferenceGroup]]) -> None:
    pool = PreferencePool()
    for added, shard in enumerate(shards):
        pool.extend(shard)
        assert pool[:] == [group for shard in shards[: added + 1] for group in shard]
    groups = pool[:]
    assert len(pool) == len(groups)
    assert pool[1:3] == groups[1:3]
    assert [pool[index] for index in reversed(range(len(pool)))] == groups[::-1]
    with pytest.raises(IndexError, match=f"^there is no preference {len(pool)}"):
        pool[len(pool)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # to close it fails as well
def test_a_full_disk_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b"))  # noqa: SIM115
    group = PreferenceGroup(
        prompt_id="p", prompt_token_ids=[1], candidate_token_ids=[[2], [3]], reference_logps=[-1.0, -2.0]
    )
    with pytest.raises(NoRoomError, match=r"preferences in /.*: No space left on device; free some space, or name"):
        PreferencePool().extend([group])


def test_memory_does_not_grow_with_preferences() -> None:
    rng = random.Random(0)

    def made(count: int) -> Iterator[PreferenceGroup]:
        for number in range(count):
            answers = [[rng.randrange(50_000) for _ in range(100)] for _ in range(2)]
            yield PreferenceGroup(
                prompt_id=str(number), prompt_token_ids=[1], candidate_token_ids=answers, reference_logps=[-1.0, -2.0]
            )

    def held(count: int) -> int:
        tracemalloc.start()
        pool = PreferencePool()
        pool.extend(made(count))
        assert sum(len(group.candidate_token_ids) for group in pool) == 2 * count
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    # Tokens of one preference take 7 KB in memory, its place in the file 8 bytes.
    assert held(2000) - held(100) < 1900 * 100
