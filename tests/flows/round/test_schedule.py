"""Who waits for whom in a round, by the real schedule on a simulated clock: see ``support.simulated_run``."""

import pytest

from support.simulated_run import SPLITS, Speeds, timeline

SPEEDS = Speeds()
TAIL = SPEEDS.judge / 16
"""The last shard of each engine, of sixteen in all, is judged after it was sampled, one after the other."""


def serial(engines: int) -> float:
    """Weight sync, held-out answers in two shards, and their scoring: what nothing else is beside."""
    return SPEEDS.sync + SPEEDS.evaluate / 2 / min(2, engines) + SPEEDS.evaluate / 2


def test_on_one_device_all_parts_take_turns() -> None:
    line = timeline(0, 1, mode="phased", staleness=0)
    assert line.hidden == 0
    assert line.seconds == pytest.approx(SPEEDS.sample + SPEEDS.judge + SPEEDS.update + serial(1), abs=2 * TAIL)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_sampled_ahead_the_longer_side_alone_counts(count: int) -> None:
    """The engines work for the next round while the update works for this one; weight sync and evaluation stay."""
    engines, ranks = SPLITS[count]
    sampled, trained = SPEEDS.sample / engines, SPEEDS.update / ranks
    assert sampled < trained
    line = timeline(engines, ranks, mode="streaming", staleness=1)
    assert line.hidden == pytest.approx(1, abs=1e-6)
    assert line.covered == pytest.approx(sampled / trained, rel=1e-3)
    assert line.seconds == pytest.approx(trained + serial(engines), abs=2 * TAIL)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_sampler_that_is_slower_never_waits_for_the_update(count: int) -> None:
    """All of the update is beside the sampling, and a round is as long as the sampling with what stays."""
    engines, ranks = SPLITS[count]
    speeds = Speeds(sample=2 * SPEEDS.update * engines / ranks)
    line = timeline(engines, ranks, mode="streaming", staleness=1, speeds=speeds)
    assert line.covered == pytest.approx(1, abs=1e-6)
    assert line.seconds == pytest.approx(speeds.sample / engines + serial(engines), abs=(engines + 1) * TAIL)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_streaming_within_a_round_hides_all_but_the_first_and_the_last_shards(count: int) -> None:
    engines, ranks = SPLITS[count]
    sampled, trained = SPEEDS.sample / engines, SPEEDS.update / ranks
    streamed, phased = (timeline(engines, ranks, mode=mode, staleness=0) for mode in ("streaming", "phased"))
    assert phased.hidden == 0
    # Each engine has two shards in flight, one after the other: the first one is there after the time of one shard.
    first = SPEEDS.sample / 16
    assert streamed.seconds == pytest.approx(max(sampled, trained) + first + serial(engines), abs=first + 2 * TAIL)
    assert streamed.seconds < phased.seconds - 0.5 * min(sampled, trained)
