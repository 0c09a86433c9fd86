"""The plan of an update's steps: the learning rate over replayed preferences and warm-up, and steps that are not whole.

No model: the learning rates are those of the formula in ``pipeline/dpo/optimizer.py``, with places computed by hand.
"""

import itertools
from collections.abc import Sequence

import pytest

from pipeline.config import UpdateConfig
from pipeline.dpo.batches import PlannedStep, StepPlan
from pipeline.dpo.optimizer import learning_rate_factor
from pipeline.dpo.types import RoundFacts

SEED = 3
ROUND = RoundFacts()


def steps_of(config: UpdateConfig, parts: Sequence[tuple[int, float]], *, most: int | None = None) -> list[PlannedStep]:
    """All steps of these parts, each of so many preferences and the share of the prompts that is through with it."""
    plan = StepPlan(config, seed=SEED, warmup_steps=config.warmup_steps, most=most)
    for preferences, share in parts:
        plan.add(preferences, share)
    plan.close()
    found = [plan.step(number) for number in range(plan.expected_steps)]
    assert plan.step(plan.expected_steps) is None
    return [step for step in found if step is not None]


def rates(config: UpdateConfig, steps: Sequence[PlannedStep]) -> list[float]:
    return [learning_rate_factor(config, ROUND, step=number, done=step.done) for number, step in enumerate(steps)]


def config_of(**fields: object) -> UpdateConfig:
    return UpdateConfig.model_validate({"batch_size": 4, "batch_order": "shards", **fields})


def test_replayed_preferences_have_their_part_of_the_schedule() -> None:
    """8 + 8 of the round's own and 12 replayed are 7 steps of 4, each a seventh of a line that falls to 0."""
    config = config_of(schedule="linear")
    steps = steps_of(config, [(8, 0.5), (8, 1.0), (12, 1.0)])
    assert rates(config, steps) == pytest.approx([1 - number / 7 for number in range(7)])
    assert sorted(index for step in steps for index in step.members) == list(range(28))
    cosine = rates(config_of(schedule="cosine"), steps)
    assert all(0 < after < before for before, after in itertools.pairwise(cosine))


def test_replayed_preferences_behind_one_shard_and_over_two_epochs() -> None:
    config = config_of(schedule="linear", epochs=2)
    steps = steps_of(config, [(8, 1.0), (8, 1.0)])
    assert rates(config, steps) == pytest.approx([1 - number / 8 for number in range(8)])


def test_a_warm_up_reaches_the_peak_in_the_order_of_shards() -> None:
    """Four of eight steps warm up to 1/5 ... 4/5; the fifth is the schedule's first, at its peak."""
    config = config_of(schedule="linear", warmup_steps=4)
    parts = [(8, 0.25), (8, 0.5), (8, 0.75), (8, 1.0)]
    expected = [0.2, 0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25]
    assert rates(config, steps_of(config, parts)) == pytest.approx(expected)
    shuffled = config_of(schedule="linear", warmup_steps=4, batch_order="shuffled")
    assert rates(shuffled, steps_of(shuffled, parts)) == pytest.approx(expected), "as in the other order"


def test_a_warm_up_that_ends_in_the_second_epoch() -> None:
    config = config_of(schedule="linear", warmup_steps=3, epochs=2)
    assert rates(config, steps_of(config, [(4, 0.5), (4, 1.0)])) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_shards_without_preferences_take_nothing_of_the_peak() -> None:
    """The first half of the prompts gave none: the first step is still at the peak."""
    config = config_of(schedule="linear")
    assert rates(config, steps_of(config, [(0, 0.25), (0, 0.5), (4, 0.75), (4, 1.0)])) == pytest.approx([1.0, 0.5])


def test_a_step_is_the_same_whether_it_is_taken_early_or_at_the_end() -> None:
    """In mode streaming steps are taken while later shards are sampled; the result may not depend on it."""
    config = config_of(schedule="linear", warmup_steps=2)
    parts = [(5, 0.25), (6, 0.5), (3, 0.75), (7, 1.0)]
    late = steps_of(config, parts)
    plan, early = StepPlan(config, seed=SEED, warmup_steps=2), list[PlannedStep]()
    for preferences, share in parts:
        plan.add(preferences, share)
        while (step := plan.step(len(early))) is not None:
            early.append(step)
    assert len(early) == 5
    assert early == late[:5]


@pytest.mark.parametrize("order", ["shuffled", "shards"])
def test_the_last_step_of_an_epoch_weighs_as_much_as_it_has(order: str) -> None:
    """17 preferences at 16 a step: the second step of each epoch has one of 16."""
    steps = steps_of(config_of(batch_size=16, epochs=2, batch_order=order), [(17, 1.0)])
    assert [len(step.members) for step in steps] == [16, 1, 16, 1]
    assert [step.weight for step in steps] == [1.0, 1 / 16, 1.0, 1 / 16]


def test_a_round_with_few_preferences_takes_no_whole_step() -> None:
    """One of 24 prompts gave a preference: a sixteenth of a step. A batch has no more than the round could give."""
    (step,) = steps_of(config_of(batch_size=16), [(1, 1.0)], most=24)
    assert step.weight == 1 / 16
    (step,) = steps_of(config_of(batch_size=1000), [(18, 1.0)], most=24)
    assert step.weight == 18 / 24
    (step,) = steps_of(config_of(batch_size=1000), [(18, 1.0)])
    assert step.weight == 1.0, "who does not say how many there could be has a whole batch"
