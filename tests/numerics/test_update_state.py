"""An update that is saved, interrupted and gone on with; moments that are carried on; limits that end it early."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numerics.test_update import OTHER_REFERENCE, SEED, SETTINGS, preferences, rates, weights
from numerics.tiny_models import build, changed
from safetensors.torch import load_file, save_file

from pipeline.config import UpdateConfig
from pipeline.dpo.update import PreferenceGroup, RoundFacts, Update, run_update
from pipeline.errors import DataError, OutOfMemoryError
from pipeline.model.logprobs import pack_logps, sequence_logps
from pipeline.model.policy import load_weights, round_weights, save_policy
from support.tiny import tiny_tokenizer

LONG = changed(SETTINGS, epochs=3, schedule="cosine", weight_decay=0.1)  # nine steps


class InterruptedError_(Exception):
    """Ends an update in the middle, as a crash would."""


def saved_at(step: int, directory: Path, settings: UpdateConfig = LONG) -> None:
    """An update that is saved before this step and then lost."""
    model = build()
    update = Update(model, preferences(model), settings, seed=SEED)

    def interrupt(row) -> None:
        if row.step + 1 == step:
            update.save(directory)
        elif row.step == step:
            raise InterruptedError_

    with pytest.raises(InterruptedError_):
        update.run(interrupt)


@pytest.mark.parametrize("step", [1, 4, 8])
def test_resumed_equals_uninterrupted_to_the_bit(step, tmp_path):
    """Saved within an epoch, at the end of one, and before the last step; the model that goes on had other weights."""
    whole = build()
    expected = run_update(whole, preferences(whole), LONG, seed=SEED)
    saved_at(step, tmp_path)
    groups = preferences(build())
    model = build(seed=5)  # whatever the process holds: the state has the weights
    update = Update(model, groups, LONG, seed=SEED)
    taken = update.load(tmp_path)
    result = update.run()
    assert [row.step for row in taken] == list(range(step))
    torch.testing.assert_close(weights(model), weights(whole), rtol=0, atol=0)
    assert result.final_logps == expected.final_logps
    assert (result.first_loss, result.reference_drift) == (expected.first_loss, expected.reference_drift)
    timeless = [[replace(row, seconds=0) for row in rows] for rows in (result.steps, expected.steps)]
    assert timeless[0] == timeless[1]


def test_a_policy_saved_in_bfloat16_is_the_one_that_was_measured(tmp_path):
    """Masters are float32 until the last step, also in a saved state. Then whoever loads the checkpoint has the rounded
    policy to the bit, as the next round's reference, whose first loss is ln 2.
    """
    (tmp_path / "state").mkdir()
    whole, model = build(), build()
    groups = preferences(model)
    run_update(whole, groups, SETTINGS, seed=SEED)
    update = Update(model, groups, SETTINGS, seed=SEED, saved_as=torch.bfloat16)
    result = update.run(lambda row: update.save(tmp_path / "state") if row.step == 2 else None)
    state = load_file(tmp_path / "state" / "weights.safetensors")
    for name, weight in weights(whole).items():
        assert torch.equal(state[name], weight)
        assert torch.equal(weights(model)[name], weight.bfloat16().float())
    save_policy(model, tiny_tokenizer(), tmp_path / "saved", dtype=torch.bfloat16)
    loaded = build(seed=5)
    load_weights(loaded, tmp_path / "saved")
    again = sequence_logps(loaded, result.sample, 200)
    assert again == sequence_logps(model, result.sample, 200) == result.final_logps
    following = run_update(loaded, preferences(loaded, seed=1), SETTINGS, seed=SEED)
    assert following.first_loss == pytest.approx(0.6931472, abs=1e-6)


def test_bfloat16_between_rounds_loses_small_steps():
    """Weights near 0.1 lie 5e-4 apart in bfloat16, and 3 steps of Adam at 1e-5 move them by at most 3e-5. So hardly any
    of those above 2 ** -5, where numbers lie 2 ** -12 apart, keep what they learned, and the loss goes back to ln 2.
    """
    model = build()
    round_weights(model, torch.bfloat16)
    start = weights(model)
    groups = preferences(model)
    slow = changed(SETTINGS, learning_rate=1e-5)
    run_update(model, groups, slow, seed=SEED)
    trained = weights(model)
    round_weights(model, torch.bfloat16)
    moved, kept = 0, 0
    for name, weight in weights(model).items():
        large = start[name].abs() > 2**-5
        moved += int((large & (trained[name] != start[name])).sum())
        kept += int((large & (weight != start[name])).sum())
    assert moved > 10_000
    assert kept == 0


def test_a_state_brings_the_reference_that_it_had(tmp_path):
    """A GPU adds up in another order each time: what goes on has other last bits, and ends as if it had not."""
    whole = build()
    expected = run_update(whole, preferences(whole), LONG, seed=SEED)
    saved_at(4, tmp_path)
    model = build()
    other = [
        replace(group, reference_logps=[logp + 1e-5 for logp in group.reference_logps]) for group in preferences(model)
    ]
    update = Update(model, other, LONG, seed=SEED)
    update.load(tmp_path)
    assert update.run().chosen_change == expected.chosen_change
    torch.testing.assert_close(weights(model), weights(whole), rtol=0, atol=0)


def test_state_of_other_inputs_is_refused(tmp_path):
    saved_at(4, tmp_path)
    model = build()
    groups = preferences(model)
    for other in (
        Update(model, groups[:-1], LONG, seed=SEED),
        Update(model, groups, LONG, seed=SEED + 1),
        Update(model, groups, changed(LONG, learning_rate=2e-3), seed=SEED),
    ):
        with pytest.raises(DataError, match="had other preferences, settings or another seed"):
            other.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "kept", "words"),
    [
        ("optimizer.safetensors", 100, "is not a readable safetensors file"),
        ("reference_logps.jsonl", 100, "reference_logps.jsonl cannot be read"),  # in the middle of a line
        ("reference_logps.jsonl", 0, "reference_logps.jsonl cannot be read"),
        ("progress.json", 100, "progress.json cannot be read"),
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(tmp_path, name, kept, words):
    saved_at(4, tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:kept])
    model = build()
    before = weights(model)
    with pytest.raises(DataError, match=words):
        Update(model, preferences(model), LONG, seed=SEED).load(tmp_path)
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)


def test_figures_are_plain_json(tmp_path):
    saved_at(4, tmp_path)
    assert len(json.loads((tmp_path / "progress.json").read_text())["rows"]) == 4
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl", ".safetensors"}


def test_carried_moments_equal_one_longer_optimizer(tmp_path):
    """Two rounds of one step each on the same preferences, the second with the moments of the first, against
    torch's AdamW that takes two steps: the second gradient is that of the second round.
    """
    settings = changed(SETTINGS, batch_size=100)
    model = build()
    groups = preferences(model)
    first = Update(model, groups, settings, seed=SEED, facts=OTHER_REFERENCE)
    first.run()
    first.save_optimizer(tmp_path)
    carried = build()
    carried.load_state_dict(model.state_dict())
    second = Update(carried, groups, settings, seed=SEED, facts=OTHER_REFERENCE)
    second.carry_optimizer(tmp_path)
    second.run()
    both = build()
    run_update(both, groups, changed(settings, epochs=2), seed=SEED, facts=OTHER_REFERENCE)
    # The second epoch has another order, which adds the same gradients up in another way.
    for name, weight in weights(carried).items():
        torch.testing.assert_close(weight, weights(both)[name], rtol=1e-4, atol=1e-5)
    reset = build()
    reset.load_state_dict(model.state_dict())
    run_update(reset, groups, settings, seed=SEED, facts=OTHER_REFERENCE)
    assert any((weights(reset)[name] - weight).abs().max() > 1e-4 for name, weight in weights(carried).items())


def test_moments_of_another_model_are_refused(tmp_path):
    model = build("gpt2")
    update = Update(model, preferences(model), SETTINGS, seed=SEED)
    update.run()
    update.save_optimizer(tmp_path)
    other = build()
    with pytest.raises(DataError, match=r"that of another model.*set update\.optimizer_state to reset"):
        Update(other, preferences(other), SETTINGS, seed=SEED).carry_optimizer(tmp_path)


def test_moments_of_another_optimizer_are_refused(tmp_path):
    model = build()
    update = Update(model, preferences(model), SETTINGS, seed=SEED)
    update.run()
    update.save_optimizer(tmp_path)
    path = tmp_path / "optimizer.safetensors"
    names = {"exp_avg": "state1", "exp_avg_sq": "state2", "step": "step"}  # those of bitsandbytes
    saved = {name.rpartition("/"): tensor for name, tensor in load_file(path).items()}
    save_file({f"{weight}/{names[field]}": tensor for (weight, _, field), tensor in saved.items()}, path)
    with pytest.raises(DataError, match=r"another optimizer than AdamW.*set update\.optimizer_state to reset"):
        Update(model, preferences(model), SETTINGS, seed=SEED).carry_optimizer(tmp_path)


def test_adam_with_a_large_epsilon_moves_by_the_gradient():
    """With epsilon far above the gradients the first AdamW step is -lr * g / epsilon (bias-corrected moments are g
    and g squared), with the default it is about -lr * sign(g).
    """
    model = build()
    before, groups = weights(model), preferences(model)
    settings = changed(SETTINGS, batch_size=100, adam_epsilon=1e3, max_grad_norm=1e6, learning_rate=1.0)
    (row,) = run_update(model, groups, settings, seed=SEED).steps
    moved = torch.sqrt(sum(((weights(model)[name] - old) ** 2).sum() for name, old in before.items()))
    # 1e-2: the largest gradients are not entirely negligible against epsilon, and float32 differences of weights.
    assert moved.item() == pytest.approx(row.grad_norm / 1e3, rel=1e-2)


@pytest.mark.parametrize(("field", "limit", "word"), [("stop_at_kl", 0.05, "KL"), ("stop_at_margin", 0.3, "margin")])
def test_steps_end_after_the_one_that_met_a_limit(field, limit, word):
    model, free = build(), build()
    settings = changed(LONG, **{field: limit})
    rows = run_update(free, preferences(free), LONG, seed=SEED).steps
    over = next(row.step for row in rows if (row.kl if field == "stop_at_kl" else row.reward_margin) > limit)
    assert 0 < over < len(rows) - 1  # the limit is met in the middle
    result = run_update(model, preferences(model), settings, seed=SEED)
    assert [row.step for row in result.steps] == list(range(over + 1))
    assert word in result.stopped
    assert f"at step {over}" in result.stopped


def test_an_update_that_met_its_limit_stays_ended_when_it_is_loaded(tmp_path):
    model = build()
    update = Update(model, preferences(model), changed(LONG, stop_at_kl=0.05), seed=SEED)
    steps = len(update.run(lambda _row: update.save(tmp_path)).steps)
    again = Update(build(), preferences(build()), changed(LONG, stop_at_kl=0.05), seed=SEED)
    again.load(tmp_path)
    assert len(again.run().steps) == steps


def test_kl_of_a_step_is_half_the_mean_square():
    """Differences of 1 and 3 nats: (1 + 9) / 2 / 2 = 2.5; of a pair beside a ranking of three the missing place does
    not count.
    """
    model = build()
    groups = preferences(model, count=1)
    shifted = [replace(groups[0], reference_logps=[groups[0].reference_logps[0] - 1, groups[0].reference_logps[1] + 3])]
    assert run_update(model, shifted, SETTINGS, seed=SEED, facts=OTHER_REFERENCE).steps[0].kl == pytest.approx(
        2.5, rel=1e-4
    )
    model = build()
    three = preferences(model, count=1, candidates=3, seed=3)
    both = changed(SETTINGS, objective={"plackett_luce": 1.0})
    # The ranking has no difference: (2.5 + 0) / 2.
    assert run_update(model, [*shifted, *three], both, seed=SEED, facts=OTHER_REFERENCE).steps[0].kl == pytest.approx(
        1.25, rel=1e-3
    )


def test_memory_that_runs_out_halves_the_packs(monkeypatch):
    """A device that holds 60 tokens: the step is done again with smaller packs, and the result is the same."""
    roomy, small = build(), build()
    settings = changed(SETTINGS, batch_size=12, epochs=2, token_budget=200)
    expected = run_update(roomy, preferences(roomy), settings, seed=SEED)

    def limited(model, pack, **settings):
        if model is small and torch.is_grad_enabled() and len(pack.input_ids_T) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")
        return pack_logps(model, pack, **settings)

    monkeypatch.setattr("pipeline.dpo.gradients.pack_logps", limited)
    said = []
    groups = preferences(small)
    result = Update(small, groups, settings, seed=SEED, say=said.append).run()
    assert result.token_budget == 50
    assert ["packs of 100 tokens" in sentence for sentence in said] == [True, False]
    assert all("out of memory at step 0" in sentence for sentence in said)
    assert result.steps[-1].loss == pytest.approx(expected.steps[-1].loss, rel=1e-4)  # summed in another order


def test_a_larger_preference_that_comes_after_memory_ran_out(monkeypatch):
    """The packs have been halved to 50 tokens when one of 58 is added, which the device holds."""
    model = build()
    settings = changed(SETTINGS, batch_order="shards", batch_size=6, token_budget=200)
    first = preferences(model, count=6)
    large = PreferenceGroup(
        prompt_id="large",
        prompt_token_ids=[*range(3, 13)],
        candidate_token_ids=[[*range(3, 28)], [*range(30, 55)]],
        reference_logps=[0.0, 0.0],
    )
    large = replace(large, reference_logps=sequence_logps(model, [large], 200)[0])
    assert large.packed_tokens == 58

    def limited(model, pack, **settings):
        if torch.is_grad_enabled() and len(pack.input_ids_T) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return pack_logps(model, pack, **settings)

    monkeypatch.setattr("pipeline.dpo.gradients.pack_logps", limited)
    said = []
    update = Update(model, first, settings, seed=SEED, share=0.5, say=said.append)
    update.advance()
    assert "packs of 50 tokens" in said[-1]
    update.add([large], 1.0)
    result = update.run()
    assert (len(result.steps), result.token_budget) == (2, 58)


def test_memory_that_does_not_hold_one_preference_is_a_clear_error(monkeypatch):
    def never(*_arguments, **_settings):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("pipeline.dpo.gradients.pack_logps", never)
    model = build()
    with pytest.raises(OutOfMemoryError, match=r"does not hold prompt prompt-\d+ .*gradient_checkpointing"):
        run_update(model, preferences(model), SETTINGS, seed=SEED)


def test_learning_rate_over_a_whole_run():
    """Two rounds of four steps each along one line, after one step of warm-up in the first: 1/2, then 1, 5/6, 4/6;
    1/2, 3/8, 2/8, 1/8.
    """
    settings = UpdateConfig(schedule="linear", warmup_steps=1, schedule_over="run")
    first, second = RoundFacts(round=1, rounds=2), RoundFacts(round=2, rounds=2)
    assert rates(settings, steps=4, facts=first) == pytest.approx([1 / 2, 1, 5 / 6, 4 / 6])
    assert rates(settings, steps=4, facts=second) == pytest.approx([1 / 2, 3 / 8, 2 / 8, 1 / 8])


def test_a_step_of_one_pair_moves_the_weights_by_its_share():
    """Adam's first step is as long for one pair as for many (about the learning rate for each weight): of a batch of 8
    it is an eighth.
    """
    moved = []
    for facts in (RoundFacts(), RoundFacts(most_preferences=8)):
        model = build()
        before = weights(model)
        (row,) = run_update(
            model, preferences(model)[:1], changed(SETTINGS, batch_size=8), seed=SEED, facts=facts
        ).steps
        moved.append(sum((weights(model)[name] - old).abs().sum() for name, old in before.items()))
    assert row.learning_rate == SETTINGS.learning_rate / 8
    # 1e-3: float32 weights of size 0.2, of which differences of 1e-4 are taken.
    assert moved[1].item() == pytest.approx(moved[0].item() / 8, rel=1e-3)


def test_an_update_goes_with_its_last_name():
    """Its file of preferences and its moments do not wait for the garbage collector: a long run would pile them up."""
    update = Update(build(), preferences(build()), SETTINGS, seed=SEED)
    update.run()
    left = weakref.ref(update)
    gc.disable()
    try:
        del update
        assert left() is None
    finally:
        gc.enable()
