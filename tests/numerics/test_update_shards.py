"""Preferences that come shard by shard: what the update learns does not depend on when they come."""

import itertools
from dataclasses import replace

import pytest
import torch
from numerics.test_update import SEED, SETTINGS, preferences, weights
from numerics.tiny_models import build, changed

from pipeline.dpo.batches import StepPlan
from pipeline.dpo.update import Update, run_update
from pipeline.errors import DataError, PromptTooLongError

BY_SHARD = changed(SETTINGS, batch_order="shards", batch_size=4, epochs=2, schedule="linear")
SHARDS = (3, 0, 6, 1, 7)
"""Sizes, of which none is a multiple of the batch; one shard gave no preference."""


def shards(groups):
    """The preferences cut into shards, each with the share of the round's prompts that is through with it."""
    starts = [sum(SHARDS[:index]) for index in range(len(SHARDS))]
    parts = [groups[start : start + size] for start, size in zip(starts, SHARDS, strict=True)]
    return [(part, (index + 1) / len(SHARDS)) for index, part in enumerate(parts)]


def test_steps_between_shards_give_the_same_bits_as_steps_at_the_end():
    results = []
    for eager in (True, False):
        model = build()
        update = Update(model, [], BY_SHARD, seed=SEED, share=0.0)
        taken = []
        for part, share in shards(preferences(model, count=sum(SHARDS))):
            update.add(part, share)
            if eager:
                update.advance()
                taken.append(len(update._done.rows))
        results.append((update.run(), weights(model)))
        # 3, 3, 9, 10 and 17 preferences are there: as many whole batches of 4.
        assert not eager or taken == [0, 0, 2, 2, 4]
    (eager_result, eager_weights), (late_result, late_weights) = results
    torch.testing.assert_close(eager_weights, late_weights, rtol=0, atol=0)
    assert eager_result.final_logps == late_result.final_logps
    assert len(eager_result.steps) == 2 * 5


def test_the_first_epoch_takes_shard_after_shard():
    plan = StepPlan(BY_SHARD, seed=SEED)
    for size, share in zip(SHARDS, (0.2, 0.4, 0.6, 0.8, 1.0), strict=True):
        plan.add(size, share)
    plan.close()
    steps = [plan.step(number) for number in range(10)]
    assert plan.step(10) is None
    first, second = ([index for step in steps if step.epoch == epoch for index in step.members] for epoch in (0, 1))
    bounds = [0, 3, 9, 10, 17]
    for start, end in itertools.pairwise(bounds):
        assert sorted(first[start:end]) == list(range(start, end))
    assert first[3:9] != list(range(3, 9)), "within a shard the order is drawn"
    assert sorted(second) == list(range(17))
    assert second != first


def test_each_shard_is_permuted_in_its_own_way():
    plan = StepPlan(changed(BY_SHARD, batch_size=9), seed=SEED)
    for share in (0.25, 0.5, 0.75, 1.0):
        plan.add(9, share)
    orders = {tuple(index - 9 * number for index in plan.step(number).members) for number in range(4)}
    assert len(orders) == 4


def test_only_the_last_step_ends_an_update():
    """Nothing is saved after it. While shards are missing, no step is known to be the last."""
    model = build()
    groups = preferences(model, count=12)
    ended = []

    def note(_row):
        ended.append(update.ended)

    update = Update(model, groups[:4], changed(BY_SHARD, epochs=1), seed=SEED, share=0.5)
    update.advance(note)
    update.add(groups[4:], 1.0)
    update.run(note)
    assert ended == [False, False, True]


def test_a_step_is_known_as_soon_as_its_batch_is_there():
    plan = StepPlan(BY_SHARD, seed=SEED)
    assert plan.expected_steps == 2, "one an epoch, while nobody knows better"
    for size, steps in ((3, 0), (1, 1), (3, 1), (1, 2)):
        plan.add(size, 0.5)
        assert [plan.step(number) is not None for number in range(3)] == [number < steps for number in range(3)]


def test_the_learning_rate_falls_with_the_prompts_that_are_through():
    """Half of the update is its first epoch. Step 1 begins with the second preference of the third shard, the first
    two of which hold 0.4 of the prompts: (0.4 + 0.2 * 1/6) / 2; step 2 with the sixth: (0.4 + 0.2 * 5/6) / 2.
    """
    plan = StepPlan(BY_SHARD, seed=SEED)
    for size, share in zip(SHARDS, (0.2, 0.4, 0.6, 0.8, 1.0), strict=True):
        plan.add(size, share)
    assert plan.expected_steps == 8  # 17 / 4, rounded, twice
    plan.close()
    assert plan.expected_steps == 10
    done = [plan.step(number).done for number in range(10)]
    assert done[:3] == pytest.approx([0.0, (0.4 + 0.2 / 6) / 2, (0.4 + 0.2 * 5 / 6) / 2])
    # The second half is the second epoch, of which each preference is as much: 4 before each step but the first.
    assert done[5:] == pytest.approx([0.5 + start / 17 / 2 for start in (0, 4, 8, 12, 16)])


def test_an_update_saved_between_shards_goes_on_with_those_that_it_had(tmp_path):
    whole = build()
    expected = run_shards(Update(whole, [], BY_SHARD, seed=SEED, share=0.0), shards(preferences(whole, count=17)))
    model = build()
    parts = shards(preferences(model, count=17))
    lost = Update(model, [], BY_SHARD, seed=SEED, share=0.0)
    run_shards(lost, parts[:3], finish=False)
    lost.save(tmp_path)
    again = build(seed=5)
    update = Update(again, [], BY_SHARD, seed=SEED, share=0.0)
    for part, share in parts[:3]:
        update.add(part, share)
    assert len(update.load(tmp_path)) == 2
    result = run_shards(update, parts[3:])
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)
    assert result.final_logps == expected.final_logps
    other = Update(build(), [], BY_SHARD, seed=SEED, share=0.0)
    other.add(*parts[0])
    with pytest.raises(DataError, match="had other preferences"):
        other.load(tmp_path)


def test_what_does_not_fit_is_refused_when_it_comes():
    """And nothing of that shard is added: the update goes on with the others."""
    model = build()
    groups = preferences(model, count=8)
    update = Update(model, groups[:4], BY_SHARD, seed=SEED, share=0.5)
    update.advance()
    with pytest.raises(DataError, match=r"compares two candidates and prompt .* has 3"):
        update.add([groups[4], *preferences(model, count=1, candidates=3)], 0.75)
    with pytest.raises(PromptTooLongError):
        update.add([replace(groups[4], prompt_token_ids=[5] * 70)], 0.75)
    update.add(groups[4:], 1.0)
    expected = run_update(build(), groups, BY_SHARD, seed=SEED)
    assert len(update.run().steps) == len(expected.steps) == 4


def test_a_round_without_any_preference_is_refused_at_its_end():
    update = Update(build(), [], BY_SHARD, seed=SEED, share=0.0)
    update.add([], 1.0)
    update.advance()
    with pytest.raises(DataError, match="got none"):
        update.run()


def test_shuffled_waits_for_the_last_shard_and_is_as_ever():
    """The plan of all preferences at once: nothing changes for who does not ask for another order."""
    settings = changed(BY_SHARD, batch_order="shuffled")
    whole, parted = build(), build()
    groups = preferences(whole, count=17)
    run_update(whole, groups, settings, seed=SEED)
    update = Update(parted, [], settings, seed=SEED, share=0.0)
    for part, share in shards(groups):
        update.add(part, share)
        update.advance()
        assert not update._done.rows
    update.run()
    torch.testing.assert_close(weights(parted), weights(whole), rtol=0, atol=0)


def run_shards(update, parts, *, finish=True):
    for part, share in parts:
        update.add(part, share)
        update.advance()
    return update.run() if finish else None
