"""The update as a whole, on tiny models in float32."""

import math
from dataclasses import replace

import pytest
import torch
from numerics.tiny_models import build, changed, gradients, plain_logps, token_groups, with_reference
from torch.nn.functional import logsigmoid

from pipeline.config import UpdateConfig
from pipeline.dpo.batches import StepPlan, plan_steps
from pipeline.dpo.checks import check_inputs
from pipeline.dpo.gradients import accumulate_gradient
from pipeline.dpo.optimizer import build_optimizer, learning_rate_factor
from pipeline.dpo.update import FIRST_ROUND, PreferenceGroup, RoundFacts, run_update
from pipeline.errors import (
    ConfigError,
    DataError,
    FirstLossError,
    NonFiniteError,
    PromptTooLongError,
    UnsupportedModelError,
)
from pipeline.model.logprobs import sequence_logps

SEED = 4
SETTINGS = UpdateConfig(batch_size=4, learning_rate=1e-3)
RANKING = changed(SETTINGS, objective={"plackett_luce": 1.0})
OTHER_REFERENCE = RoundFacts(reference_is_start=False)
# Float32 gradients of a mean over a handful of preferences, added up in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def preferences(model, count=12, candidates=2, seed=0, **fields) -> list[PreferenceGroup]:
    """Preferences whose reference is the model as it is."""
    groups = token_groups(count, candidates, seed)
    return with_reference(groups, sequence_logps(model, groups, 200), **fields)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_first_loss_of_pairs_is_ln_2(name):
    model = build(name)
    result = run_update(model, preferences(model), SETTINGS, seed=SEED)
    assert result.first_loss_expected == math.log(2)
    assert result.first_loss == pytest.approx(math.log(2), abs=1e-6)
    assert result.reference_drift < 1e-4  # packs of another make-up: the last digits of sums near 50 nats
    assert result.steps[0].loss == result.first_loss


@pytest.mark.parametrize("candidates", [2, 4])
def test_first_loss_of_rankings_is_ln_factorial(candidates):
    model = build()
    result = run_update(model, preferences(model, candidates=candidates), RANKING, seed=SEED)
    assert result.first_loss == pytest.approx(math.log(math.factorial(candidates)), abs=1e-5)


def test_first_loss_of_ties_and_of_weighted_sums():
    """Ranks 0, 0, 1 leave two comparisons with the last: 2 ln 2, and as many pairs; 0.5 * 2 ln 2 + 2 * 2 ln 2
    = 5 ln 2.
    """
    model = build()
    groups = preferences(model, candidates=3, ranks=(0, 0, 1))
    both = changed(SETTINGS, objective={"plackett_luce": 0.5, "all_pairs": 2.0})
    assert run_update(model, groups, both, seed=SEED).first_loss == pytest.approx(5 * math.log(2), abs=1e-5)


def test_a_finished_update_leaves_no_gradient():
    """The model stays in a GPU's memory while others use it, and its gradient would take as much again."""
    model = build()
    run_update(model, preferences(model), SETTINGS, seed=SEED)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("objectives", [{"simpo": 1.0}, {"sigmoid": 1.0, "sppo": 0.5}])
def test_no_first_loss_is_expected_where_theory_gives_none(objectives):
    model = build()
    result = run_update(model, preferences(model), changed(SETTINGS, objective=objectives), seed=SEED)
    assert result.first_loss_expected is None
    assert len(result.steps) == 3


def test_each_preference_has_its_own_soft_label():
    """-p log sigmoid(m) - (1 - p) log sigmoid(-m), and p = 1 without a label, in several packs."""
    model = build()
    labels = [0.6, None, 0.9, 0.5, None, 1.0, 0.75]
    groups = [
        replace(
            group,
            soft_label=label,
            reference_logps=[group.reference_logps[0] - place / 2, group.reference_logps[1] + 1],
        )
        for place, (group, label) in enumerate(zip(preferences(model, count=7), labels, strict=True))
    ]
    margins = [0.1 * (1 + place / 2) for place in range(7)]
    losses = [
        label * math.log1p(math.exp(-margin)) + (1 - label) * math.log1p(math.exp(margin))
        for label, margin in zip([1.0 if p is None else p for p in labels], margins, strict=True)
    ]
    settings = changed(SETTINGS, batch_size=7, token_budget=60)
    row = run_update(model, groups, settings, seed=SEED, facts=OTHER_REFERENCE).steps[0]
    assert row.loss == pytest.approx(sum(losses) / 7, rel=1e-4)  # margins are differences of sums near 50 nats


def test_wrong_reference_stops_before_any_weight_changes():
    model = build()
    before = weights(model)
    # one nat a sequence, as a missing end-of-sequence token would give, on every chosen answer
    wrong = [
        replace(group, reference_logps=[group.reference_logps[0] - 1, group.reference_logps[1]])
        for group in preferences(model)
    ]
    with pytest.raises(FirstLossError, match=r"first loss is 0\.64.* gives 0\.693147.*largest difference .* 1 nats"):
        run_update(model, wrong, SETTINGS, seed=SEED)
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    # the same preferences against a reference that is known to be another model
    result = run_update(model, wrong, SETTINGS, seed=SEED, facts=OTHER_REFERENCE)
    assert result.first_loss_expected is None
    assert result.first_loss == pytest.approx(-math.log(1 / (1 + math.exp(-0.1))), abs=1e-5)


@pytest.mark.parametrize("settings", [SETTINGS, changed(SETTINGS, nll_weight=0.3, exploration_weight=0.1)])
def test_gradient_equals_plain_autograd_over_one_large_batch(settings):
    """One batch of 7 pairs through `transformers` alone, against packs of 60 tokens with the count of the
    step below them.
    """
    model = build()
    groups = preferences(model, count=7)
    shifted = [
        replace(group, reference_logps=[logp + 1.5 for logp in group.reference_logps[:1]] + [-30.0]) for group in groups
    ]
    losses = []
    for group in shifted:
        logps = plain_logps(model, group)
        ratios = logps - torch.tensor(group.reference_logps)
        loss = -logsigmoid(0.1 * (ratios[0] - ratios[1]))
        loss = loss - settings.nll_weight * logps[0] / len(group.candidate_token_ids[0])
        losses.append(loss + settings.exploration_weight * logps.mean())
    expected_loss = torch.stack(losses).mean()
    expected_loss.backward()
    expected = gradients(model)
    for budget in (60, 10_000):
        part = changed(settings, token_budget=budget)
        outcome, tokens = accumulate_gradient(model, shifted, check_inputs(shifted, part), part, step=0)
        assert outcome.loss.mean().item() == pytest.approx(expected_loss.item(), rel=1e-5)
        assert tokens == sum(group.packed_tokens for group in groups)
        torch.testing.assert_close(gradients(model), expected, **CLOSE)


def test_wpo_gradient_equals_plain_autograd():
    """Weight of a pair: exp of the mean over tokens of log p - log sum p^2, for both answers, at most 1, without
    gradient.
    """
    model = build()
    groups = preferences(model, count=5)
    losses = []
    for group in groups:
        ratios, weight = [], 1.0
        for candidate, reference in zip(group.candidate_token_ids, group.reference_logps, strict=True):
            ids = torch.tensor([[*group.prompt_token_ids, *candidate]])
            table = model(input_ids=ids).logits[0, len(group.prompt_token_ids) - 1 : -1].log_softmax(-1)
            logps = table.gather(1, torch.tensor(candidate)[:, None])[:, 0]
            weight *= (logps - (2 * table).logsumexp(-1)).mean().exp().item()
            ratios.append(logps.sum() - reference)
        losses.append(-min(1.0, weight) * logsigmoid(0.1 * (ratios[0] - ratios[1])))
    torch.stack(losses).mean().backward()
    expected = gradients(model)
    settings = changed(SETTINGS, wpo=True, token_budget=60)
    outcome, _ = accumulate_gradient(model, groups, check_inputs(groups, settings), settings, step=0)
    torch.testing.assert_close(gradients(model), expected, **CLOSE)
    assert outcome.objective.mean().item() == pytest.approx(math.log(2), abs=1e-6)  # what theory is compared with


def test_importance_gradient_equals_plain_autograd():
    """Weight of a pair: the product of p / q over both answers, at most the bound, without gradient; q are shifted
    references, so that some pairs are at the bound and others far below it. On its own samples every weight is 1.
    """
    model = build()
    groups = preferences(model, count=6)
    shifts = (-0.4, 0.3, -0.9, 1.1, 0.0, -0.2)
    shifted = [
        replace(group, reference_logps=[logp + shift for logp in group.reference_logps])
        for group, shift in zip(groups, shifts, strict=True)
    ]
    losses, weighed = [], []
    for group in shifted:
        ratios = plain_logps(model, group) - torch.tensor(group.reference_logps)
        weighed.append(min(1.5, math.exp(ratios.detach().sum().item())))
        losses.append(-weighed[-1] * logsigmoid(0.1 * (ratios[0] - ratios[1])))
    assert weighed.count(1.5) == 2, "exp(0.8) and exp(1.8)"
    torch.stack(losses).mean().backward()
    expected = gradients(model)
    settings = changed(SETTINGS, importance="clipped", importance_bound=1.5, token_budget=60)
    accumulate_gradient(model, shifted, check_inputs(shifted, settings), settings, step=0)
    torch.testing.assert_close(gradients(model), expected, **CLOSE)
    for plain in (SETTINGS, changed(SETTINGS, importance="clipped")):
        outcome, _ = accumulate_gradient(model, groups, check_inputs(groups, plain), plain, step=0)
        assert outcome.loss.mean().item() == pytest.approx(math.log(2), abs=1e-5)


def test_rankings_of_different_sizes_share_a_step():
    """Mean over 3 preferences of 2, 3 and 4 candidates at the start: (ln 2! + ln 3! + ln 4!) / 3."""
    model = build()
    groups = [preferences(model, count=1, candidates=candidates, seed=candidates)[0] for candidates in (2, 3, 4)]
    result = run_update(model, groups, RANKING, seed=SEED)
    assert result.first_loss == pytest.approx(math.log(2 * 6 * 24) / 3, abs=1e-5)


@pytest.mark.parametrize("settings", [SETTINGS, changed(SETTINGS, epochs=2, schedule="cosine", weight_decay=0.1)])
def test_same_seed_gives_the_same_weights_to_the_bit(settings):
    models = [build(), build()]
    results = [run_update(model, preferences(model), settings, seed=SEED) for model in models]
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=0, atol=0)
    assert results[0].final_logps == results[1].final_logps
    other = build()
    run_update(other, preferences(other), settings, seed=SEED + 1)
    assert any(not torch.equal(one, weights(other)[name]) for name, one in weights(models[0]).items())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_dropout_is_off(gradient_checkpointing):
    """GPT-2 drops a tenth of its activations in training mode; the policy must be the one that was sampled from."""
    model = build("gpt2")
    groups = preferences(model)
    model.train()
    settings = changed(SETTINGS, gradient_checkpointing=gradient_checkpointing)
    assert run_update(model, groups, settings, seed=SEED).reference_drift < 1e-4


def test_it_learns_the_preferences():
    model = build()
    groups = preferences(model)
    seen = []
    result = run_update(model, groups, changed(SETTINGS, epochs=8), seed=SEED, on_step=seen.append)
    assert seen == result.steps
    assert [row.step for row in seen] == list(range(24))
    last = result.steps[-1]
    assert last.accuracy == 1
    assert last.loss < 0.5 < math.log(2)
    assert last.reward_margin == pytest.approx(last.reward_chosen - last.reward_rejected, abs=1e-5)


def test_metrics_are_those_of_the_step():
    """One step over all preferences, before it is taken: means of the log-probabilities under the model as it was."""
    model = build()
    groups = [replace(group, reference_logps=[-20.0, -30.0]) for group in preferences(model)]
    start = sequence_logps(model, groups, 200)
    settings = changed(SETTINGS, batch_size=100)
    result = run_update(model, groups, settings, seed=SEED, facts=OTHER_REFERENCE)
    (row,) = result.steps
    chosen, rejected = (sum(logps[place] for logps in start) / len(start) for place in (0, 1))
    assert row.logp_chosen == pytest.approx(chosen, rel=1e-5)
    assert row.logp_rejected_change == pytest.approx(rejected + 30, rel=1e-4)
    assert row.reward_chosen == pytest.approx(0.1 * (chosen + 20), rel=1e-4)
    assert row.accuracy == sum(logps[0] + 20 > logps[1] + 30 for logps in start) / len(start)
    assert result.reference_drift == pytest.approx(
        max(max(abs(logps[0] + 20), abs(logps[1] + 30)) for logps in start), rel=1e-5
    )


def test_displacement_is_measured_after_the_last_step():
    model = build()
    groups = preferences(model)
    result = run_update(model, groups, changed(SETTINGS, epochs=3), seed=SEED)
    assert 8 <= len(result.sample) <= len(groups)
    assert all(group in groups for group in result.sample)
    final = sequence_logps(model, result.sample, SETTINGS.token_budget)
    assert result.final_logps == final
    changes = [logps[0] - group.reference_logps[0] for logps, group in zip(final, result.sample, strict=True)]
    assert result.chosen_change == pytest.approx(sum(changes) / len(changes))
    assert result.chosen_fell_share == sum(change < 0 for change in changes) / len(changes)
    assert result.rejected_change < 0


def test_bfloat16_stays_near_float32():
    """8 bits of mantissa: a sequence of 9 tokens moves by some tenths of a nat, the first loss by less than 1%."""
    model, rounded = build(), build()
    exact = run_update(model, preferences(model), SETTINGS, seed=SEED)
    result = run_update(rounded, preferences(rounded), changed(SETTINGS, precision="bfloat16"), seed=SEED)
    assert 0 < result.reference_drift < 1
    assert result.first_loss == pytest.approx(exact.first_loss, rel=0.01)
    assert all(weight.dtype == torch.float32 for weight in rounded.parameters())


def test_runaway_step_is_named():
    """A learning rate that sends the weights to 1e30: the second step overflows, and is not taken."""
    model = build()
    taken = []
    with pytest.raises(NonFiniteError, match=r"loss of step 1 is not finite for 4 preferences: prompt-\d+ .*not taken"):
        run_update(model, preferences(model), changed(SETTINGS, learning_rate=1e30), seed=SEED, on_step=taken.append)
    assert len(taken) == 1


def test_gradient_that_is_not_finite_is_named_before_the_step():
    model = build()
    groups, before = preferences(model), weights(model)
    model.model.layers[1].mlp.up_proj.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match=r"gradient of step 0.*layers\.1\.mlp\.up_proj\.weight.*prompt-\d+"):
        run_update(model, groups, SETTINGS, seed=SEED)
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)


def test_unfit_inputs_are_refused_before_work_starts():
    model = build()
    pairs, rankings = preferences(model, count=3), preferences(model, count=3, candidates=3)
    for groups, settings, error, words in [
        ([], SETTINGS, DataError, "got none: every prompt"),
        (rankings, SETTINGS, DataError, "'sigmoid' compares two candidates and prompt prompt-0 has 3"),
        (
            [replace(pairs[0], soft_label=0.9)],
            changed(SETTINGS, objective={"hinge": 1.0}),
            DataError,
            "no soft labels",
        ),
        (rankings, changed(RANKING, wpo=True), ConfigError, "wpo weighs pairs"),
        (pairs, changed(SETTINGS, token_budget=8), PromptTooLongError, "token budget is 8"),
    ]:
        with pytest.raises(error, match=words):
            run_update(model, groups, settings, seed=SEED)


def test_unfit_weights_are_refused_before_work_starts():
    model = build()
    pairs = preferences(model)
    with pytest.raises(UnsupportedModelError, match=r"is torch\.bfloat16 and the update trains float32"):
        run_update(build().to(torch.bfloat16), pairs, SETTINGS, seed=SEED)
    with torch.no_grad():
        model.lm_head.weight[3, 5] = math.nan
    with pytest.raises(NonFiniteError, match=r"lm_head\.weight is not finite before the first step"):
        run_update(model, pairs, SETTINGS, seed=SEED)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reference_logps": [-1.0]}, "2 candidates and reference log-probabilities"),
        ({"reference_logps": [-1.0, math.nan]}, "finite"),
        ({"ranks": [1, 0]}, r"ranks \[1, 0\]"),
        ({"ranks": [0, 0]}, "not all equal"),
        ({"soft_label": 1.2}, "soft label 1.2"),
        ({"candidate_token_ids": [[1]]}, "1 candidates: a preference needs at least 2"),
    ],
)
def test_malformed_preference_names_its_prompt(fields, words):
    good = {
        "prompt_id": "p7",
        "prompt_token_ids": [1],
        "candidate_token_ids": [[1], [2]],
        "reference_logps": [-1.0, -2.0],
    }
    PreferenceGroup(**good)
    with pytest.raises(DataError, match=rf"prompt p7 .*{words}"):
        PreferenceGroup(**(good | fields))


def test_plan_covers_every_epoch_in_an_order_of_its_own():
    plan = plan_steps(10, batch_size=4, epochs=2, seed=SEED)
    assert [(epoch, len(members)) for epoch, members in plan] == [(0, 4), (0, 4), (0, 2), (1, 4), (1, 4), (1, 2)]
    first, second = ([index for epoch, members in plan if epoch == which for index in members] for which in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert plan == plan_steps(10, batch_size=4, epochs=2, seed=SEED)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_learning_rate_of_each_step(schedule, factors):
    """Six steps, two of them warm-up."""
    assert rates(UpdateConfig(schedule=schedule, warmup_steps=2), steps=6) == pytest.approx(factors)


def rates(settings, *, steps, facts=FIRST_ROUND):
    """The factor of each step of an update with so many steps."""
    plan = StepPlan(changed(settings, batch_size=1), seed=SEED, warmup_steps=facts.warmup_steps(settings))
    plan.add(steps, 1.0)
    plan.close()
    return [learning_rate_factor(settings, facts, step=step, done=plan.step(step).done) for step in range(steps)]


def test_only_matrices_decay():
    optimizer = build_optimizer(build("gpt2"), UpdateConfig(weight_decay=0.1))
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert {weight.ndim for weight in decayed["params"]} == {2}
    assert {weight.ndim for weight in kept["params"]} == {1}
